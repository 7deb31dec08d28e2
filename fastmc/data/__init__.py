"""Skeleton sets: readers, normalisation, the packed store and its preparation. Importing it needs no torch."""

from __future__ import annotations

from fastmc.data.store import PackedStore, StoreError, StoreWriter

__all__ = ["PackedStore", "StoreError", "StoreWriter"]
