//! Address spaces: their mappings against a model, and against the tables that the host sees.
