"""Families of models: a file for each kind, in it one entry for each family. The table of all is table.py."""
