"""Small configurations of other libraries, trained and sampled as their own loops do.

All settings stand in the constructors of `diffusers_example.py` and `lucidrains.py`.
"""
