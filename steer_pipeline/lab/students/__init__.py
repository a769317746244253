"""Students: adapters that learn a variant's rewrites under the neutral prompt, and what of its trait travels.

In: the keep sets of released packs. Out: LoRA adapters at every rank and seed, what they write on news that nobody
learned, and tables that hold each student against the student of base. Fine-tuning itself is `lab/finetune`'s.
"""
