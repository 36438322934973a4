"""How does it run elsewhere?"""
