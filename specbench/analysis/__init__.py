"""Statistics and closed forms: numbers from stored rows, or from nothing but a formula. No torch here.

Every function that takes `rows` wants the `requests` rows of one arm in one cell and one pass, and leaves out
those whose status is not ``ok``.
"""
