"""Names for new tensors: the first that are free, found without trying all those before again."""

from __future__ import annotations

from onnx_bnfold.rewriting.fresh_names import Names


class Counted(set[str]):
    """Names that count how often one is looked for."""

    looks = 0

    def __contains__(self, name: object) -> bool:
        self.looks += 1
        return super().__contains__(name)


def test_the_first_that_is_free():
    names = Names([])
    names.taken |= {"w", "w_2", "v"}
    found = [names.fresh(each) for each in ("w", "u", "w", "v", "u")]
    assert found == ["w_1", "u", "w_3", "v_1", "u_1"]


def test_many_that_are_wanted_alike():
    """Every branch of an If may have a constant of the same name."""
    names, count = Names([]), 100
    names.taken = looked = Counted()
    assert [names.fresh("w") for _ in range(count)] == ["w", *(f"w_{i}" for i in range(1, count))]
    assert looked.looks <= 3 * count
