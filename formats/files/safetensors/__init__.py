"""One container of tensors: header, file, shards, and the library's own reading."""
