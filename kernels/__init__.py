"""How is it computed? Number formats, searches, solvers, statistics; `gpu/` holds the Triton kernels."""
