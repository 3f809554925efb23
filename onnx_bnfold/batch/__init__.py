"""Fold a store, that is every model below a folder or URL, in many processes or on Dask."""

from onnx_bnfold.batch.report import StoreReport
from onnx_bnfold.batch.run import fold_store, plan_store

__all__ = ["StoreReport", "fold_store", "plan_store"]
