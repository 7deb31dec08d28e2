"""Skeleton sets: readers, normalisation, the packed store and its preparation. Needs numpy only, never torch."""

from __future__ import annotations

from fastmc.data.store import PackedStore, StoreError, StoreWriter

__all__ = ["PackedStore", "StoreError", "StoreWriter"]
