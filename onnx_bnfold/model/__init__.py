"""An ONNX model as the planner sees it: an index, constants, shapes, and what must hold of it."""
