"""Files of textual inversion: vectors that were learned for a word, in every format in circulation.

Source: Gal et al., "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion", 2022.
"""
