"""How are layers rewritten, one after the other?"""
