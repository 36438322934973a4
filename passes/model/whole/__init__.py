"""How is a whole model held, that only computes?"""
