"""Clips: what moves, what the camera shows of it, what the player does, and what the captions say of it."""

import numpy as np
import pytest

from transformer_zoo.data.scenes import canvas, clip, grammar, palette, shapes, slots


def clips(indices, split="train", side=32, frames=8, **options):
    seeds = slots.scene_seeds(0, "clip", split, np.asarray(indices))
    return clip.Fields(clip.draw(seeds, split, side, frames, **options))


def test_a_clip_does_not_depend_on_the_batch_it_is_in():
    order = np.random.default_rng(0).permutation(24)
    whole, shuffled, alone = clips(range(24), "val"), clips(order, "val"), clips([11], "val")
    for name in clip.FIELDS:
        np.testing.assert_array_equal(getattr(whole, name)[order], getattr(shuffled, name), err_msg=name)
        np.testing.assert_array_equal(getattr(whole, name)[11:12], getattr(alone, name), err_msg=name)


@pytest.mark.parametrize(("side", "frames"), [(32, 8), (64, 17), (32, 17)])
def test_tracks_are_where_objects_are_seen(side, frames):
    found = clips(range(40), side=side, frames=frames)
    half = canvas.half_of(found.scene.sprite, side)
    seen = 0
    for k in range(40):
        for t in range(frames):
            column, row, scale = found.cam[k, t]
            for n in range(4):
                mask = found.inst[k, t] == n + 1
                shape = found.obj[k, n, 0]
                # The box of a whole ball, ring, gem, box or cross is centred on its centre.
                if (
                    scale < 1
                    or shape in (-1, 2)
                    or mask.sum() < np.diff(shapes.atlas(side).first)[found.scene.sprite[k, n]]
                ):
                    continue
                rows, columns = np.nonzero(mask)
                centre = (rows.min() + rows.max()) / 2 + row, (columns.min() + columns.max()) / 2 + column
                assert centre == tuple(found.obj_track[k, t, n])
                seen += 1
    assert seen > 100
    tracks, exists = found.obj_track.astype(int), found.obj_track[..., 0] >= 0
    assert (exists == (found.scene.sprite >= 0)[:, None]).all()
    inside = (tracks - half[:, None, :, None] >= 0) & (tracks + half[:, None, :, None] <= (side - 1, 2 * side - 1))
    assert inside[exists].all()


def test_objects_keep_their_speed_and_turn_at_the_walls_only():
    found = clips(range(300), frames=17)
    tracks, half = found.obj_track.astype(int)[:, :, :3], canvas.half_of(found.scene.sprite, 32)[:, None, :3]
    steps = np.diff(tracks, axis=1)
    assert abs(steps).max() == 2
    turned = (steps[:, 1:] != steps[:, :-1]).any(axis=0)
    assert turned.any()
    for axis, length in ((0, 32), (1, 64)):
        place = tracks[:, 1:-1, :, axis]
        wall = np.minimum(place - half, length - 1 - half - place)
        changed = steps[:, 1:, :, axis] != steps[:, :-1, :, axis]
        assert wall[changed].max() <= 2, "within a step of a wall"
    assert {tuple(step) for step in steps[:, 0].reshape(-1, 2)} == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


def test_at_first_every_object_lies_in_the_window():
    found = clips(range(300))
    half = canvas.half_of(found.scene.sprite, 32)
    row, column, size = found.scene.window[:, 0].T[:, :, None]
    place, exists = found.obj_track[:, 0].astype(int), found.scene.sprite >= 0
    for origin, centre in ((row, place[..., 0]), (column, place[..., 1])):
        assert ((centre - half >= origin) & (centre + half < origin + size))[exists].all()


def test_frames_show_the_window_that_cam_describes():
    found = clips(range(120), frames=16)
    cameras = {int(clause[1]) for program in found.program for clause in program if clause[0] == grammar.CAMERA}
    assert cameras == set(range(5))
    for program, cam in zip(found.program, found.cam.astype(float)):
        camera = next(clause[1] for clause in program if clause[0] == grammar.CAMERA)
        column, row, scale = cam.T
        assert (column >= 0).all() and (row >= 0).all() and (column + 32 * scale <= 64).all()
        if camera in (clip.STAYS, clip.PANS_LEFT, clip.PANS_RIGHT):
            assert (scale == 1).all() and (row == 0).all()
            assert set(np.diff(column)) == {{clip.STAYS: 0, clip.PANS_LEFT: -1, clip.PANS_RIGHT: 1}[camera]}
        else:
            assert sorted(scale[[0, -1]]) == [0.75, 1] and (scale[-1] == 0.75) == (camera == clip.ZOOMS_IN)
            assert (abs(np.diff(scale)) < 0.05).all()
            middle = row + 16 * scale, column + 16 * scale - column[0] - 16 * scale[0]
            assert abs(middle[0] - 16).max() <= 0.5 and abs(middle[1]).max() <= 1
    # The world behind a zoom: every frame is the canvas, nearest pixel.
    zoomed = next(k for k in range(120) if found.cam[k, -1, 2] == 0.75 and found.event[k, 1] == 0)
    column, row, scale = found.cam[zoomed, -1]
    inst = found.inst[zoomed, -1]
    for y, x in ((0, 0), (5, 30), (31, 16)):
        at = int(row + y * scale), int(column + x * scale)
        near = [n for n in range(4) if np.abs(found.obj_track[zoomed, -1, n] - at).max() <= 8]
        assert inst[y, x] == 0 or inst[y, x] - 1 in near


def test_flow_carries_each_frame_into_the_next():
    found = clips(range(60))
    checked = 0
    for k in range(60):
        if found.event[k, 1] == grammar.SNOWFALL:
            continue
        for t in range(7):
            if found.cam[k, t, 2] < 1 or found.cam[k, t + 1, 2] < 1 or found.event[k, 0] == t + 1:
                continue
            y, x = np.mgrid[:32, :32]
            y2, x2 = y + found.flow[k, t, ..., 0], x + found.flow[k, t, ..., 1]
            inside = (y2 >= 0) & (y2 < 32) & (x2 >= 0) & (x2 < 32)
            now, then = found.inst[k, t][inside], found.inst[k, t + 1][y2[inside], x2[inside]]
            stays = now == then  # else something nearer, or farther where a ring's hole moves on, covers it
            assert stays.mean() > 0.7
            colours = found.video[k, t][inside][stays], found.video[k, t + 1][y2[inside], x2[inside]][stays]
            np.testing.assert_array_equal(*colours)  # the stripes of a ground that the camera passes, too
            checked += 1
    assert checked > 150
    assert (found.flow[:, -1] == 0).all()
    zoom = next(k for k in range(60) if found.cam[k, -1, 2] == 0.75)
    corner = found.flow[zoom, :-1].astype(int).sum(axis=0)
    assert corner[0, 0].max() < 0 < corner[31, 31].min(), "what a zoom comes nearer to moves outward"


def test_the_player_obeys_its_actions_and_stays_in_sight():
    found = clips(range(300), frames=17, player="always")
    path, actions = found.obj_track[:, :, clip.PLAYER_ROW].astype(int), found.action
    assert set(np.unique(actions)) == set(range(6))
    np.testing.assert_array_equal(np.diff(path, axis=1), clip.STEPS[clip.action_classes(actions.astype(int))])
    for steps, row in zip(np.diff(path, axis=1), actions):
        t = 0
        while t < 16:
            if row[t] == clip.JUMP:
                assert (row[t : t + 6] == clip.JUMP).all()
                assert steps[t : t + 6, 0].tolist() == [-2, -2, -2, 2, 2, 2][: 16 - t]
                t += 6
            else:
                t += 1
    area = np.diff(shapes.atlas(32).first)[shapes.PLAYER_SPRITE]
    sight = (found.inst == clip.PLAYER_ROW + 1).sum(axis=(2, 3))
    assert (sight[found.cam[..., 2] == 1] == area).all(), "nothing hides it"
    assert (sight >= area).all()
    assert (clips(range(50), player="never").obj_track[:, :, 3] == -1).all()
    some = clips(range(300))
    assert 0.4 < (some.obj_track[:, 0, 3, 0] >= 0).mean() < 0.6
    assert (some.action[some.obj_track[:, 0, 3, 0] < 0] == 0).all()


def test_the_player_is_white_in_a_black_ring():
    found = clips([0], side=64, player="always")
    row, column = found.obj_track[0, 0, 3] - found.scene.window[0, 0, :2]
    assert found.scene.window[0, 0, 2] == 64
    assert found.video[0, 0, row, column].tolist() == [245, 245, 245]
    line = found.video[0, 0, row, column - 9 : column + 10].sum(axis=-1)
    assert line[1] == 0 == line[17] and (line[2:17] == 3 * 245).all() and line[0] > 0 < line[18]


def test_events_change_what_they_name_from_their_frame_on():
    found = clips(range(300), frames=16)
    environment, kinds = found.scene.environment, set()
    for k, (frame, kind, value) in enumerate(found.event):
        kinds.add(int(kind))
        for name, number, kind_of_change in (("sky", 0, grammar.SKY_CHANGE), ("ground", 1, grammar.GROUND_CHANGE)):
            over_time = getattr(environment, name)[k]
            if kind == kind_of_change:
                assert (over_time[:frame] == found.env[k, number]).all() and found.env[k, number] != value
                assert (over_time[frame:] == value).all() and 4 <= frame < 12
            else:
                assert (over_time == found.env[k, number]).all()
        flakes = (found.video[k] == palette.FLAKE_RGB).all(axis=-1).sum(axis=(1, 2))
        if kind == grammar.SNOWFALL:
            assert (flakes[:frame] == 0).all() and (flakes[frame:] > 10).all()
        else:
            assert (flakes == 0).all()
        assert (frame == -1) == (kind == 0)
    assert kinds == {0, 1, 2, 3}
    night = [k for k in range(300) if tuple(found.event[k, 1:]) == (grammar.SKY_CHANGE, 2) and found.cam[k, 0, 2] == 1]
    assert (found.video[night, -1, 0, 0] == palette.SKY_RGB[2]).all(axis=-1).mean() > 0.5


def test_captions_state_motions_player_and_event():
    found = clips(range(400))
    steps = np.sign(np.diff(found.obj_track.astype(int), axis=1))
    for k, program in enumerate(found.program):
        named = [clause for clause in program if clause[0] == grammar.OBJECT]
        assert len(named) == found.scene.objects.count[k]
        for clause in program[program[:, 0] == grammar.MOTION]:
            n = int(np.flatnonzero(found.obj[k, :, 1] == named[clause[1]][2])[0])
            for axis in range(2):
                ways = steps[k, :, n, axis]
                stated = clause[2 + axis] - 1
                assert (ways == stated).sum() >= (ways == -stated).sum()
                assert stated != 0 or (ways.sum() == 0)
        events = program[program[:, 0] == grammar.EVENT]
        assert events[:, 1:3].tolist() == ([found.event[k, 1:].tolist()] if found.event[k, 1] else [])
        players = program[program[:, 0] == grammar.PLAYER]
        assert len(players) == found.scene.player[k]
        if len(players):
            moves = np.abs(steps[k, :, 3]).sum() > 0
            assert (players[0, 1] > 0) == moves
    kinds = [clause[1] for program in found.program for clause in program if clause[0] == grammar.PLAYER]
    assert set(kinds) == {0, 1, 2}


def test_segments_have_a_caption_each():
    found = clips(range(100))
    for first, second, whole, start, event in zip(
        *np.moveaxis(found.captions, 1, 0), found.text, found.seg_start, found.event
    ):
        before, after = grammar.decode(first), grammar.decode(second)
        if event[1]:
            assert whole == f"{before} then {after}" and start.tolist() == [0, event[0]]
        else:
            assert whole == before and after == "" and start.tolist() == [0, -1]


@pytest.mark.parametrize("frames", clip.FRAMES)
def test_easy_clips_show_one_object_at_steady_speed_before_one_background(frames):
    found = clips(range(200), frames=frames, easy=True)
    assert (found.env[:, [0, 1, 3]] == (0, 0, 12)).all() and (found.event == (-1, 0, 0)).all()
    assert (found.cam == (0, 0, 1)).all() and not found.scene.player.any()
    assert (found.scene.objects.count == 1).all()
    steps = np.diff(found.obj_track[:, :, 0].astype(int), axis=1)
    if frames == 17:
        steps = steps[:, :-1]  # a large object meets the wall in the last frame
    assert (steps == steps[:, :1]).all() and set(abs(steps).reshape(-1)) == {0, 2 if frames == 8 else 1}
    half = canvas.half_of(found.scene.sprite, 32)[:, :1, None]
    place = found.obj_track[:, :, 0].astype(int)
    assert ((place >= half) & (place + half < 32)).all(), "always in sight"
    background = np.where((found.inst == 0)[..., None], found.video, 0).max(axis=(0, 1))
    assert ((found.video == background) | (found.inst > 0)[..., None]).all()
    assert found.text[0].endswith("camera stays")
    full = clips(range(200), frames=frames)
    np.testing.assert_array_equal(found.scene.objects.colour[:, 0], full.scene.objects.colour[:, 0])
    np.testing.assert_array_equal(clips(range(9), easy=True, player="always").scene.player, True)


def test_depth_and_classes_follow_the_instances():
    found = clips(range(30))
    for k in range(30):
        for n in range(4):
            mask = found.inst[k] == n + 1
            expected = 2 if n == clip.PLAYER_ROW else found.obj[k, n, 0] + 2
            assert (found.semseg[k][mask] == expected).all()
    assert set(np.unique(found.semseg[found.inst == 0])) == {0, 1}
    assert (found.depth[found.semseg == 0] == 1).all() and found.depth.min() >= 0.0199
    player, rest = found.depth[found.inst == 4], found.depth[(found.inst > 0) & (found.inst < 4)]
    assert player.max() <= 0.1 + 1e-6 < rest.mean()
    normal = found.normal.astype(float)
    assert (normal[found.semseg == 0] == (128, 128, 255)).all() and (normal[found.semseg == 1] == (128, 0, 128)).all()
