"""What must a result reach?"""
