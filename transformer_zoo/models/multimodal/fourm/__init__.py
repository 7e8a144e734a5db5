"""4M and 4M-21: one transformer over tokens of many modalities (arXiv 2312.06647 and 2406.09406).

`modalities` says what a modality is and `published` lists the papers' sets; `embeddings` and `model` are the network;
`masking` decides what is shown and what is asked; `task` is the objective.
"""
