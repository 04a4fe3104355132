"""Images, videos and sound, in and out, with the record inside them; `formats` has the one table of formats.

It logs no runs, and knows nothing of how the pixels came about.
"""
