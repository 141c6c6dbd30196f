"""The names of choices; importing them costs nothing, so that the command line may list them."""

# Where the penalty acts: in the loss, or in a proximal step after the optimizer's.
PENALTIES = ("in_loss", "decoupled")

# What becomes of the moving statistics of batch normalization, which no penalty holds.
BATCH_NORM = ("freeze", "update")
