"""How tokens come about: one loop, one verification, any method. No clock, no file, no plot.

Read ``loop.py`` first; ``method.py`` is the contract that a new method meets.
"""
