"""Which channels go, and what is cut with them?"""
