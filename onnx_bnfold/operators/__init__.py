"""What each operator does with a change of its tensors: the algebra and the table."""
