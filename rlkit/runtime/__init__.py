"""What every room may use of the process it runs in; nothing here knows about learning.

garbage     Python's collector of reference cycles, paused while it cannot find anything
"""
