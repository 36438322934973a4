"""How are inputs multiplied with codes?"""
