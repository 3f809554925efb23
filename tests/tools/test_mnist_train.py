import dataclasses

import numpy as np
import pytest
import torch

from onnx_bnfold.errors import ModelError, UsageError
from tools.mnist import data
from tools.mnist.train import FULL, QUICK, Schedule, _batches, _rates, restore, save, train

TWO_STEPS = Schedule(
    "quick", ((0.2, 0.01), (0.2, 0.002)), bn_momentum=0.1, averaging=0.5, target=0.0
)


def test_full_schedule_is_the_seeds():
    rates = _rates(FULL, 55_000 // 128)
    assert rates == [0.01] * 5 * 429 + [0.002] * 5 * 429
    assert FULL.bn_momentum == pytest.approx(1 - 0.99)


def test_quick_schedule_is_a_fraction_of_it():
    assert len(_rates(QUICK, 429)) < len(_rates(FULL, 429)) / 5


def test_batches_go_through_all_images_in_a_new_order_each_epoch():
    torch.manual_seed(0)
    batches = _batches(300)
    epochs = [torch.cat([next(batches), next(batches)]) for _ in range(2)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 2 * 128
    assert epochs[0].tolist() != epochs[1].tolist()


@pytest.fixture
def part(folder) -> data.Part:
    return data.load(folder).train


@pytest.mark.slow
def test_training_depends_on_the_seed_alone(part):
    first, again, other = (train(part, TWO_STEPS, seed)[0].state_dict() for seed in (1, 1, 2))
    for name, value in first.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(first["fc1.weight"], other["fc1.weight"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_training_moves_weights_and_moving_averages(part):
    network, training = train(part, TWO_STEPS, seed=0)
    assert training.steps == 2
    assert not network.training
    assert torch.all(network.bn_1.running_mean != 0)
    assert not torch.allclose(network.fc2.bias, torch.tensor(0.1), atol=1e-4)


@pytest.mark.slow
def test_save_and_restore(part, tmp_path):
    network, training = train(part, TWO_STEPS, seed=0)
    save(network, training, tmp_path / "new" / "net.pt")
    restored, record = restore(tmp_path / "new" / "net.pt")
    assert record == training
    assert not restored.training
    for name, value in network.state_dict().items():
        assert torch.equal(restored.state_dict()[name], value)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["net.pt"]


def test_subnormals_are_restored(part):
    train(part, dataclasses.replace(TWO_STEPS, phases=()), seed=0)
    assert np.float32(torch.tensor(1e-40) * 1) > 0


def test_restore_without_a_file(tmp_path):
    with pytest.raises(UsageError, match=r"net\.pt is not there: train first"):
        restore(tmp_path / "net.pt")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04"])
def test_restore_of_something_else(tmp_path, content):
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"net\.pt is not a network saved here"):
        restore(tmp_path / "net.pt")


def test_failed_save_leaves_nothing(tmp_path, monkeypatch, part):
    network, training = train(part, dataclasses.replace(TWO_STEPS, phases=()), seed=0)

    def half(content, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save(network, training, tmp_path / "new" / "net.pt")
    assert not list((tmp_path / "new").iterdir())
