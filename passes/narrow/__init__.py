"""What of a layer goes, and what is cut with it?"""
