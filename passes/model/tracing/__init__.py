"""What does a decoder layer show when it runs without weights?"""
