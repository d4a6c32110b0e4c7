"""Number and length of the bands of a signature, for a recall at a floor."""


def bands_for(min_jaccard: float, permutations: int, min_recall: float) -> tuple[int, int]:
    """Number of bands, and rows of each: the longest bands with that recall, hence fewest pairs.

    ValueError where bands of one row have less.
    """
    for rows in range(permutations, 0, -1):
        bands = permutations // rows
        if recall(min_jaccard, bands, rows) >= min_recall:
            return bands, rows
    raise ValueError(
        f"{permutations} permutations find {recall(min_jaccard, permutations, 1):.3f} of the pairs "
        f"at min_jaccard {min_jaccard}, fewer than min_recall {min_recall}"
    )


def recall(jaccard: float, bands: int, rows: int) -> float:
    """Chance that two sets of this similarity share a band, 0 to 1.

    Source: Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.
    """
    return 1 - (1 - jaccard**rows) ** bands
