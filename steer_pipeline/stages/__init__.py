"""What is made, from what, how often and on which device, and what must hold of it. One package a stage."""
