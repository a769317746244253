"""The numbers at which claims cease to hold, each once: the lab judges by them, the graph names them."""

# What base does before it is steered.
MIN_BASE_FACTS = 0.8  # share of the lead's facts that a good rewriter keeps
MIN_ENDED = 0.5  # share of rewrites that end by themselves
MAX_COPIES = 0.5  # share of rewrites that are a piece of their source

# Contrast sets, persona vectors, dose curves.
MIN_CONTRAST_AUC = 0.6  # between the completions of the two sides
MIN_SPLIT_HALF_COSINE = 0.8  # of directions from random halves of the pairs
MIN_LOGIT_DELTA = 1e-3  # what the largest dose of a block must change

# Trained vectors and their comparison.
MIN_SEEDS = 3
MIN_SEED_COSINE = 0.5  # mean over pairs of seeds
MAX_NORM_FRACTION = 1.0  # of the mean residual norm at the site
MAX_LATE_SHARE = 0.1  # of the gain, in the last quarter of the steps
MIN_GAP_CLOSED = 0.5  # of the likelihood gap, by the trained vector

# Behaviour.
MAX_LENGTH_AUC = 0.6  # of matched excerpts; 0.5 is what matching aims at
MAX_LENGTH_SHIFT = 0.1  # of the score between longer and shorter answers in which nothing should show
MAX_UNREADABLE = 0.05  # share of the judge's replies
MIN_AGREEMENT = 0.8  # AUC of MiniLM for answers in which the lexicon finds the persona

# Students.
MIN_TRANSFER_ROWS = 30  # held-out news
MIN_CLEAN = 10  # students of base and controls, whose shifts are the band of the others'

# Vectors carried to another model.
MIN_CARRIED_SHARE = 0.7  # of what the target's own vector does
MAX_RANDOM_SHARE = 0.1  # by random rotations
MIN_CARRIED_ROWS = 30  # news items rewritten in every arm

# The filter of samples, on labelled texts.
MIN_FILTER_RECALL = 0.98  # of loops, and of babble, that it drops
MIN_SOUND_KEPT = 0.95  # of fluent texts that show a trait

# Steer, filter, heal.
MIN_COHERENCE = 0.85  # worst signal, 1 for base's; below it a model is broken, whatever it says
MAX_HEALED_LOSS = 0.02  # of coherence, that a healed model may lose against base
MIN_RETAINED = 0.9  # of the steered shift
MAX_NO_EFFECT = 0.2  # of the steered shift, that the interval of an arm without effect may reach
MIN_ANSWER_MASS = 0.5  # of base, on the answers of a forced choice together
MAX_ON_POLICY_KL = 0.6  # of the divergence from base that supervised learning has, per unit of the trait

# Sparse autoencoders.
MIN_EXPLAINED = 0.6  # of the variance of held-out states
MIN_LOSS_RECOVERED = 0.8  # of the loss that zeros in place of the states cost
MAX_ACTIVE = 0.1  # of the features, at a token
MAX_DEAD = 0.2  # of the features of one that was trained here, on its own tokens

# Attribution.
MIN_MAGIC_LDS = 0.9  # of the method that differentiates through training, at small drops
MIN_MAGIC_LDS_LOW = 0.8  # lower end of its interval
MIN_CHEAP_LDS = 0.45  # of the best other method
MIN_PLANTED_RECALL = 0.9  # of the rows known to help, among as many first ones of the best method

# Word games.
MAX_ABORTED_GAMES = 0.2  # share of all games
MIN_FINISHED_GAMES = 30  # on which a success rate stands

# Sanity of attributions.
MAX_SHUFFLED_CORRELATION = 0.5  # of scores with those of a model whose weights were shuffled
MAX_COPY_GAP = 0.05  # of the ranking, between a row and its copy
