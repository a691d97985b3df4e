"""Problems once more with other numbers, other names, or in another order, and with their right answers.

The idea is that of GSM-Symbolic (Mirzadeh et al. 2024, arXiv:2410.05229), without templates written by hand: what a
problem's solution computes is read from its calculator marks (`<<48/2=24>>`), and a problem is taken only where every
operand is traced to where it comes from.
"""
