"""The live demo page: camera, kept tokens and reconstruction side by side. Needs the ``demo`` extra.

``messages`` says what a page may ask for, ``feeds`` where pictures come from, ``engine`` turns them into tokens and
back in a thread of its own, ``server`` brings the results to any number of pages.
"""
