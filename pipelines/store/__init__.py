"""Where artifacts live: content-digested files, one manifest each, published in one atomic step."""

from pipelines.store.manifest import File, Manifest, OutputRecord
from pipelines.store.store import Store, open_store

__all__ = ["File", "Manifest", "OutputRecord", "Store", "open_store"]
