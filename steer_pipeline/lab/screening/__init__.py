"""Training rows before anyone trains on them: what they would teach, which to leave out, and how to learn the rest.

`projecting` holds rows against persona vectors, with base's own answer as reference; `predicting` compares what that
predicts with what students did; `gate` flags rows; `preventing` keeps one trait out while another is learned.
"""
