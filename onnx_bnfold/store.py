"""The old name of ``onnx_bnfold.batch``; it goes with the next release."""

import warnings

from onnx_bnfold.batch import StoreReport, fold_store, plan_store

__all__ = ["StoreReport", "fold_store", "plan_store"]

warnings.warn("onnx_bnfold.store is onnx_bnfold.batch by now", DeprecationWarning, stacklevel=2)
