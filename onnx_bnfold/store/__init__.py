"""Fold a store, that is every model below a folder or URL, in many processes or on Dask."""

from onnx_bnfold.store.report import StoreReport
from onnx_bnfold.store.run import fold_store, plan_store

__all__ = ["StoreReport", "fold_store", "plan_store"]
