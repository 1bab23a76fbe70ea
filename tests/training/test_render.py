import numpy as np

from cope_training.render import Renderer, patch_centres, patch_labels
from cope_training.scenes import COLOURS, SHAPES, Leg, Scene, Thing


def scene(*things: Thing, **camera: object) -> Scene:
    return Scene("clouds", 1, (110.0, 110.0, 110.0), 80.0, 0.0, things, **camera)  # type: ignore[arg-type]


def centre(owner: np.ndarray) -> tuple[float, float]:
    """Middle of what thing 0 covers, (x, y) pixels."""
    rows, columns = np.nonzero(owner == 0)
    return float(columns.mean()), float(rows.mean())


def test_things_are_where_their_legs_have_taken_them() -> None:
    thing = Thing("red", "circle", 16, 40, 64, legs=(Leg(1, 3, 10, 0), Leg(3, 4, 0, -20)))
    renderer = Renderer(scene(thing), 128, 128)
    for time_s, place in ((0, (40, 64)), (2, (50, 64)), (3, (60, 64)), (3.5, (60, 54)), (9, (60, 44))):
        x, y = centre(renderer.draw(time_s)[1])
        assert abs(x + 0.5 - place[0]) < 0.6 and abs(y + 0.5 - place[1]) < 0.6


def test_a_pan_moves_the_world_through_the_picture() -> None:
    renderer = Renderer(scene(Thing("blue", "square", 16, 40, 40), pan=(12.0, -6.0)), 128, 128)
    x, y = centre(renderer.draw(2.0)[1])
    assert abs(x + 0.5 - 64) < 0.6 and abs(y + 0.5 - 28) < 0.6
    before, after = (renderer.draw(t)[0].astype(int) for t in (0.0, 1.0))
    assert np.abs(after[:-6, 12:] - before[6:, :-12]).mean() < 1.5  # 12 px to the right, 6 px up


def test_zooming_in_enlarges_and_a_clockwise_roll_takes_the_right_side_down() -> None:
    right = Thing("green", "circle", 12, 84, 64)
    near = Renderer(scene(right, zoom=np.log(1.5)), 128, 128).draw(1.0)[1]
    assert abs(centre(near)[0] + 0.5 - 94) < 0.6  # 20 px right of the middle become 30
    turned = Renderer(scene(right, roll=np.pi / 2), 128, 128).draw(1.0)[1]
    x, y = centre(turned)
    assert abs(x + 0.5 - 64) < 0.6 and abs(y + 0.5 - 84) < 0.6


def test_spin_and_growth_change_the_thing_in_its_place() -> None:
    still = Renderer(scene(Thing("red", "triangle", 20, 64, 64)), 128, 128)
    grown = Renderer(scene(Thing("red", "triangle", 20, 64, 64, growth=np.log(2))), 128, 128)
    spun = Renderer(scene(Thing("red", "triangle", 20, 64, 64, spin=np.pi)), 128, 128)
    area = [(renderer.draw(1.0)[1] == 0).sum() for renderer in (still, grown, spun)]
    assert 3.7 < area[1] / area[0] < 4.3
    assert abs(area[2] / area[0] - 1) < 0.05
    assert np.array_equal(still.draw(0.0)[0], spun.draw(0.0)[0])
    assert not np.array_equal(still.draw(1.0)[0], spun.draw(1.0)[0])


def test_things_come_and_go() -> None:
    renderer = Renderer(scene(Thing("red", "cross", 20, 64, 64, from_s=1, until_s=2)), 64, 64)
    assert [bool((renderer.draw(t)[1] == 0).any()) for t in (0.9, 1.0, 1.9, 2.0)] == [False, True, True, False]


def test_patches_are_labelled_with_what_covers_most_of_them() -> None:
    drawn = scene(Thing("cyan", "square", 30, 64, 64), Thing("red", "circle", 12, 64, 64))
    owner = Renderer(drawn, 128, 128).draw(0.0)[1]
    labels = patch_labels(drawn, owner, 8).reshape(16, 16, 2)
    colours, shapes = list(COLOURS), list(SHAPES)
    assert labels[0, 0].tolist() == [0, 0]
    assert labels[8, 8].tolist() == [1 + colours.index("red"), 1 + shapes.index("circle")]
    assert labels[6, 5].tolist() == [1 + colours.index("cyan"), 1 + shapes.index("square")]


def test_patches_know_where_the_thing_is_that_covers_them() -> None:
    drawn = scene(Thing("cyan", "square", 14, 32, 96), Thing("red", "circle", 12, 96, 64))
    owner = Renderer(drawn, 128, 128).draw(0.0)[1]
    centres = patch_centres(drawn, owner, 8).reshape(16, 16, 2)
    assert centres[0, 0].tolist() == [0, 0]
    np.testing.assert_allclose(centres[12, 4], (-0.5, 0.5), atol=0.02)  # a quarter from the left, three from the top
    np.testing.assert_allclose(centres[12, 3], centres[12, 4])  # every patch of it says the same
    np.testing.assert_allclose(centres[8, 12], (0.5, 0.0), atol=0.02)
