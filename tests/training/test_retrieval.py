import torch

from cope_training.retrieval import rank


def test_ranks_count_the_other_frames_that_are_nearer() -> None:
    gallery = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])[:, None, None]
    query = torch.full((1, 1), 2.9)
    assert rank(query, gallery, match=3, own=2) == 1
    assert rank(query, gallery, match=4, own=2) == 2
    assert rank(query, gallery, match=1, own=0) == 4
    # The frame that the query came from is no candidate, however near.
    assert rank(gallery[2], gallery, match=3, own=2) == 1.5  # frame 1 is as near as frame 3
