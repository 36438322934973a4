"""Which bits for which linear?"""
