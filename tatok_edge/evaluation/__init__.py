"""How good and how fast the model is: quality metrics, folders of pictures, times."""
