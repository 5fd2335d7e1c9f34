"""Questions over a collection, drafted from its documents and verified against them."""
