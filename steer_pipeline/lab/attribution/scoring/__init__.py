"""Rankings of training rows by how much they help, and how good a ranking is.

`methods.score` ranks by any method of the settings; `quality` judges rankings by trainings without some of the rows.
Gradients, similarities, MAGIC and the rivals are here in Torch; Bergson, where it is installed, does the same and more.
"""
