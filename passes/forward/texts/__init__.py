"""What text runs through it, and in which sequences?"""
