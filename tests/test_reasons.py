from onnx_bnfold.reasons import Reason, Refused


def test_a_refusal_reads_as_a_sentence():
    """Reports of what is not known quote it."""
    refused = Refused(Reason.AXES, "Conv 'c'", "it has no channels")
    assert str(refused) == "Conv 'c': it has no channels"
    assert str(Refused.again(refused.refusal)) == str(refused)
