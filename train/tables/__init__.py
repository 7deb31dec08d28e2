"""The paper's tables: what was published, what ours came to, and the command that makes them."""
