"""LoRA files: what changes of which weights they hold, in every spelling in circulation, and how these are put on.

Sources: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021; Yeh et al., "Navigating Text-To-Image
Customization: From LyCORIS Fine-Tuning to Model Evaluation", 2023; Liu et al., "DoRA: Weight-Decomposed Low-Rank
Adaptation", 2024.
"""
