-- Every statement that the SQLite store makes. A block is named by its first line; the method of that name uses it.

-- name: advance
-- One move onto one row; version, owner and epoch fence it. An event that was posted meanwhile leaves the run due now.
UPDATE fsm_runs
   SET status = ?, state = ?, active = ?, data = ?, version = ?, definition = ?, structure = ?,
       due = CASE WHEN posted = ? THEN ? ELSE min(coalesce(due, ?), ?) END,
       owner = ?, error = ?, actions = ?, undo = ?, deadline = ?, deaths = ?, updated = ?
 WHERE id = ? AND version = ? AND owner = ? AND epoch = ?;

-- name: advance_new
-- As advance, for a move that takes an event which is in no inbox yet: none other must have been posted meanwhile.
UPDATE fsm_runs
   SET status = ?1, state = ?2, active = ?3, data = ?4, version = ?5, definition = ?6, structure = ?7,
       posted = posted + 1, due = ?9, owner = ?12, error = ?13, actions = ?14, undo = ?15, deadline = ?16,
       deaths = ?17, updated = ?18
 WHERE id = ?19 AND version = ?20 AND owner = ?21 AND epoch = ?22 AND posted = ?8
   AND NOT EXISTS (SELECT 1 FROM fsm_events WHERE run = ?19 AND event_id = ?23);

-- name: advance_running
-- As advance, for a run that was and stays running: no column of an index is named, so no index page is written.
UPDATE fsm_runs
   SET state = ?, active = ?, data = ?, version = ?, error = ?, actions = ?, undo = ?, deaths = ?, updated = ?
 WHERE id = ? AND version = ? AND owner = ? AND epoch = ?;

-- name: move
INSERT INTO fsm_moves
       (run, version, at, began, event, trigger, source, dest, status, attempt, owner, epoch, changes, removed, asked, error)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: detail
-- What else history says of a move, in the transaction that makes it.
UPDATE fsm_moves SET detail = ? WHERE run = ? AND version = ?;

-- name: event_taken
-- A new event, with what the move that took it made of it.
INSERT INTO fsm_events (run, event_id, name, payload, due, state, visit, status, version, created)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: take
-- An event of the inbox is spent.
UPDATE fsm_events SET status = ?, version = ? WHERE id = ? AND run = ? AND status = 'waiting';

-- name: drop
-- What still waits when a run is over.
UPDATE fsm_events SET status = 'dropped', version = ? WHERE run = ? AND status = 'waiting';

-- name: settle
-- What is no move: actions that were done are struck off, and the run is released. The version stays.
UPDATE fsm_runs
   SET actions = ?1, owner = ?2, error = ?3, flight = ?7,
       due = CASE WHEN posted = ?4 THEN ?5 ELSE min(coalesce(due, ?6), ?6) END
 WHERE id = ?8 AND version = ?9 AND owner = ?10 AND epoch = ?11;

-- name: create
INSERT INTO fsm_runs
       (workflow, key, definition, structure, status, state, active, data, version, due, owner, epoch, input, created, updated,
        actions, deadline)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (workflow, key) DO NOTHING
RETURNING id;

-- name: field
INSERT INTO fsm_fields (run, hash, text) VALUES (?, ?, ?) ON CONFLICT DO NOTHING;

-- name: remember
-- A remembered call, fenced like a move: only the run's owner of this epoch may add one.
INSERT INTO fsm_calls (run, state, visit, name, nth, result)
SELECT ?, ?, ?, ?, ?, ? FROM fsm_runs WHERE id = ? AND owner = ? AND epoch = ?
    ON CONFLICT DO NOTHING;

-- name: survived
-- A remembered call is progress: whoever died with this run in flight did not die of it.
UPDATE fsm_runs SET deaths = 0 WHERE id = ? AND owner = ? AND epoch = ?;

-- name: owned
SELECT 1 FROM fsm_runs WHERE id = ? AND owner = ? AND epoch = ?;

-- name: forget
DELETE FROM fsm_calls WHERE run = ? AND state = ? AND visit = ?;

-- name: recall
SELECT run, state, visit, name, nth, result FROM fsm_calls WHERE run = ? AND state = ? AND visit = ?;

-- name: moved
-- Whether a move of this owner and epoch is there: how an unknown COMMIT is resolved.
SELECT 1 FROM fsm_moves WHERE run = ? AND version = ? AND owner = ? AND epoch = ?;

-- name: settled
SELECT 1 FROM fsm_runs WHERE id = ? AND version = ? AND epoch = ? AND owner IS ?;

-- name: addressed
-- The run that an event is for, and whether it has ended for good.
SELECT id, status, (status IN ('done', 'cancelled')
        OR (status = 'failed' AND (error IS NULL OR undo ->> 'ends' IS NOT NULL)))
  FROM fsm_runs WHERE workflow = ? AND key = ?;

-- name: post
INSERT INTO fsm_events (event_id, name, payload, due, state, visit, run, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
RETURNING id;

-- name: posted
-- Posting adds to `posted`, never to `version`: a move that was decided meanwhile holds, and leaves the run due now.
-- A child that waits for its turn is made due by the engine's own events only.
UPDATE fsm_runs
   SET posted = posted + 1,
       due = CASE WHEN turn = 0 AND ?3 NOT LIKE '$%' THEN due ELSE min(coalesce(due, ?2), ?2) END
 WHERE id = ?1;

-- name: inbox
-- How many events were ever posted, and those that wait, in one row where there are none. The number of `$joined` is that
-- of its count, and so says nothing of its place.
SELECT posted, fsm_events.*
  FROM fsm_runs LEFT JOIN fsm_events ON run = fsm_runs.id AND fsm_events.status = 'waiting'
 WHERE fsm_runs.id = ?
 ORDER BY fsm_events.due, fsm_events.name = '$joined', fsm_events.id;

-- name: event
SELECT * FROM fsm_events WHERE run = ? AND event_id = ?;

-- name: taken
SELECT * FROM fsm_events WHERE run = ? AND version = ? AND status = 'accepted';

-- name: woken
-- CROSS JOIN fixes the order: what was posted since is little, what one owner holds may be much.
SELECT DISTINCT workflow, key, posted
  FROM fsm_events CROSS JOIN fsm_runs ON fsm_runs.id = run
 WHERE fsm_events.status = 'waiting' AND fsm_events.created >= ? AND owner = ?;

-- name: start_child
INSERT INTO fsm_runs
       (workflow, key, definition, structure, status, state, active, data, version, due, owner, epoch, input, created, updated,
        actions, deadline, parent, parent_state, parent_visit, ordinal, depth, turn)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)
    ON CONFLICT (workflow, key) DO NOTHING;

-- name: children_begun
-- The first row of history of each child of a visit.
INSERT INTO fsm_moves (run, version, at, event, source, dest, status, attempt, epoch, changes)
SELECT id, 0, created, '$start', '', state, status, 1, 0, nullif(data, '{}')
  FROM fsm_runs WHERE parent = ? AND parent_state = ? AND parent_visit = ?
    ON CONFLICT DO NOTHING;

-- name: child_field
INSERT INTO fsm_fields (run, hash, text)
SELECT id, ?, ? FROM fsm_runs WHERE parent = ? AND workflow = ? AND key = ?
    ON CONFLICT DO NOTHING;

-- name: siblings
-- The children of a visit: how many have their turn, the first in line, how many have not ended, how many have failed.
SELECT count(*) FILTER (WHERE turn = 1), coalesce(min(ordinal) FILTER (WHERE turn = 0), max(ordinal) + 1, 0),
       count(*) FILTER (WHERE turn < 2), count(*) FILTER (WHERE turn = 2 AND status <> 'done')
  FROM fsm_runs WHERE parent = ? AND parent_state = ? AND parent_visit = ?;

-- name: arm
-- The count of the children of a visit: `$joined`, in the parent's inbox, not yet to be seen there.
INSERT INTO fsm_events (run, event_id, name, due, state, visit, status, remaining, next, first, created)
VALUES (?, ?, '$joined', ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO NOTHING;

-- name: turns
-- So many children in line get their turn. None before `ordinal` is in line, and some after it may have ended there. One
-- that was paused there is due for nothing.
UPDATE fsm_runs SET turn = 1, due = CASE WHEN status = 'paused' THEN due ELSE ? END
 WHERE id IN (SELECT id FROM fsm_runs
               WHERE parent = ? AND parent_state = ? AND parent_visit = ? AND ordinal >= ? AND turn = 0
               ORDER BY ordinal LIMIT ?)
RETURNING workflow, key;

-- name: turn
-- The turn of a child that has ended, and was not counted yet.
SELECT turn FROM fsm_runs WHERE id = ? AND version = ? AND turn < 2;

-- name: count_end
-- A child has ended: it counts once, however often it is retried.
UPDATE fsm_runs SET turn = 2 WHERE id = ?;

-- name: count_down
-- The last end, or the first failure where that is enough, makes `$joined` due; else the next in line has its turn,
-- where the one that ended had it. What was posted before is due before `$joined`, also where the clock of who posted it
-- is ahead by less than a second.
UPDATE fsm_events
   SET remaining = remaining - 1, next = next + ?6, created = ?1,
       status = CASE WHEN remaining = 1 OR (first = 1 AND ?2) THEN 'waiting' ELSE status END,
       due = CASE WHEN remaining = 1 OR (first = 1 AND ?2)
                  THEN (SELECT max(?1, coalesce(max(sent.due), ?1)) FROM fsm_events AS sent
                         WHERE sent.run = ?3 AND sent.status = 'waiting' AND sent.due = sent.created
                           AND sent.due < ?1 + 1)
                  ELSE ?1 END
 WHERE run = ?3 AND state = ?4 AND visit = ?5 AND status = 'joining'
RETURNING status, next - ?6;

-- name: told
-- A parent whose `$joined` is due.
UPDATE fsm_runs SET posted = posted + 1, due = min(coalesce(due, ?2), ?2) WHERE id = ?1 RETURNING workflow, key;

-- name: uncount
-- The count of a visit that is left, or whose run has failed.
UPDATE fsm_events SET status = 'dropped', version = ?
 WHERE run = ? AND name = '$joined' AND state = ? AND visit = ? AND status IN ('joining', 'waiting');

-- name: unbegun_cancelled
-- The history of children that are cancelled before their turn has come.
INSERT INTO fsm_moves (run, version, at, event, source, dest, status, attempt, epoch)
SELECT id, 1, ?, '$cancel', state, state, 'cancelled', 1, 0
  FROM fsm_runs
 WHERE parent = ? AND parent_state = ? AND parent_visit = ? AND turn = 0 AND version = 0 AND posted = 0 AND owner IS NULL;

-- name: cancel_unbegun
UPDATE fsm_runs SET status = 'cancelled', version = 1, due = NULL, actions = NULL, turn = 2, updated = ?
 WHERE parent = ? AND parent_state = ? AND parent_visit = ? AND turn = 0 AND version = 0 AND posted = 0 AND owner IS NULL;

-- name: post_children
-- One of the engine's own events to those children of a visit to whom it says something. One that has failed and has its
-- turn is told to go on, and does not know yet.
INSERT INTO fsm_events (run, event_id, name, due, status, created)
SELECT id, :event_id, :name, :now, 'waiting', :now
  FROM fsm_runs
 WHERE parent = :parent AND parent_state = :state AND parent_visit = :visit
   AND CASE :name
       WHEN '$cancel' THEN status IN ('running', 'waiting', 'paused') OR (status IN ('failed', 'parked') AND EXISTS (
            SELECT 1 FROM fsm_events AS again
             WHERE again.run = fsm_runs.id AND name IN ('$retry', '$rerun') AND again.status = 'waiting'))
       WHEN '$pause' THEN turn = 1 AND status IN ('running', 'waiting', 'failed', 'parked')
       WHEN '$unpause' THEN turn = 1 AND (status = 'paused' OR EXISTS (
            SELECT 1 FROM fsm_events AS pause WHERE pause.run = fsm_runs.id AND name = '$pause' AND pause.status = 'waiting'))
       ELSE turn = 2 AND (status = 'parked' OR (status = 'failed' AND error IS NOT NULL AND undo ->> 'ends' IS NULL)) END
    ON CONFLICT DO NOTHING;

-- name: children_going
-- Children that had ended and were let go on by hand: they count again.
UPDATE fsm_runs SET turn = 1
 WHERE parent = ? AND parent_state = ? AND parent_visit = ? AND turn = 2
   AND status IN ('running', 'waiting', 'paused', 'compensating');

-- name: children_posted
-- Those to whom it was sent. One that is retried counts again.
UPDATE fsm_runs
   SET posted = posted + 1, due = min(coalesce(due, :now), :now), turn = CASE :name WHEN '$retry' THEN 1 ELSE turn END
 WHERE parent = :parent AND parent_state = :state AND parent_visit = :visit
   AND EXISTS (SELECT 1 FROM fsm_events WHERE fsm_events.run = fsm_runs.id AND event_id = :event_id)
RETURNING workflow, key;

-- name: children
SELECT * FROM fsm_runs WHERE parent = ? AND parent_state = ? AND parent_visit = ? ORDER BY ordinal;

-- name: below
-- The runs below one that can move by themselves by then, on every level: at once, or when they are due.
WITH RECURSIVE live (id, workflow, key, status, due) AS (
    SELECT id, workflow, key, status, due FROM fsm_runs WHERE parent = ?1 AND turn = 1
    UNION ALL
    SELECT fsm_runs.id, fsm_runs.workflow, fsm_runs.key, fsm_runs.status, fsm_runs.due
      FROM live JOIN fsm_runs ON fsm_runs.parent = live.id AND fsm_runs.turn = 1)
SELECT workflow, key, due, status IN ('running', 'compensating') AS busy FROM live
 WHERE due <= ?2 OR (due IS NOT NULL AND status IN ('running', 'compensating'));

-- name: load
SELECT * FROM fsm_runs WHERE workflow = ? AND key = ?;

-- name: fields
SELECT run, hash, text FROM fsm_fields WHERE (run, hash) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?));

-- name: claimable
-- The due runs of these workflows, of no newer version than is given, that no live owner holds, oldest first; `but` those
-- that are at that version.
WITH known AS MATERIALIZED (SELECT key AS name, value AS newest FROM json_each(:workflows)),
     but AS MATERIALIZED (SELECT value ->> 0 AS run, value ->> 1 AS at FROM json_each(:but))
SELECT id, version FROM fsm_runs
 WHERE due <= :by
   AND definition <= (SELECT newest FROM known WHERE name = workflow)
   AND (id, version) NOT IN (SELECT run, at FROM but)
   AND (owner IS NULL OR owner NOT IN (SELECT token FROM fsm_owners WHERE lease > :now))
 ORDER BY due, id LIMIT :many;

-- name: claimable_within
-- As claimable, where some workflows have a limit: of these no more than there is room for, the oldest. Each that has room
-- is a line, all without a limit are one; of each line only as many are looked for as are wanted.
WITH known AS MATERIALIZED (SELECT key AS name, value AS newest FROM json_each(:workflows)),
     but AS MATERIALIZED (SELECT value ->> 0 AS run, value ->> 1 AS at FROM json_each(:but)),
     room AS MATERIALIZED (SELECT key AS limited, value AS free FROM json_each(:rooms)),
     line AS MATERIALIZED (SELECT limited, free FROM room WHERE free > 0 UNION ALL SELECT NULL, :many),
     queue AS (
         SELECT run.id, run.due, free, row_number() OVER (PARTITION BY limited ORDER BY run.due, run.id) AS place
           FROM line CROSS JOIN fsm_runs AS run ON run.id IN (
                SELECT id FROM fsm_runs
                 WHERE due <= :by
                   AND iif(limited IS NULL, workflow NOT IN (SELECT limited FROM room), workflow = limited)
                   AND definition <= (SELECT newest FROM known WHERE name = workflow)
                   AND (id, version) NOT IN (SELECT run, at FROM but)
                   AND (owner IS NULL OR owner NOT IN (SELECT token FROM fsm_owners WHERE lease > :now))
                 ORDER BY due, id LIMIT :many))
SELECT id FROM queue WHERE place <= free ORDER BY due, id LIMIT :many;

-- name: driven
-- How many runs of a workflow live owners hold, those that rest not counted. By what is due, not by the workflow, of which
-- most runs have ended.
SELECT count(*) FROM fsm_runs
 WHERE +workflow = ?1 AND due IS NOT NULL AND (status IN ('running', 'compensating') OR due <= ?2)
   AND owner IN (SELECT token FROM fsm_owners WHERE lease > ?2);

-- name: claim
-- Those runs become ours. They were found claimable in this transaction. A death counts where a run was in flight, and
-- its owner was not ending anyway; of a suspect only where it had said so in that epoch.
UPDATE fsm_runs
   SET owner = ?1, epoch = epoch + 1,
       deaths = deaths + (owner IS NOT NULL AND owner <> ?1 AND due <= ?3 AND (deaths < 2 OR flight IS epoch)
                          AND owner NOT IN (SELECT token FROM fsm_owners WHERE draining = 1))
 WHERE id IN (SELECT value FROM json_each(?2))
RETURNING *;

-- name: claim_one
-- One run becomes ours, whatever it waits for, unless a live owner holds it, or its definition is a newer one, or it is a
-- child in line for which there is nothing from a hand.
UPDATE fsm_runs
   SET owner = :owner, epoch = epoch + 1,
       deaths = deaths + (owner IS NOT NULL AND owner <> :owner AND due IS NOT NULL AND due <= :now
                          AND (deaths < 2 OR flight IS epoch)
                          AND owner NOT IN (SELECT token FROM fsm_owners WHERE draining = 1))
 WHERE workflow = :workflow AND key = :key AND (:newest IS NULL OR definition <= :newest)
   AND (owner IS NULL OR owner = :owner OR owner NOT IN (SELECT token FROM fsm_owners WHERE lease > :now))
   AND (turn IS NOT 0 OR due <= :now)
RETURNING *;

-- name: oldest
-- The oldest run of a workflow that is running or due, has children that go on, or failed and may go on, and that no live
-- owner holds. Children are their parents' business.
SELECT key FROM fsm_runs
 WHERE workflow = :workflow AND parent IS NULL AND (:newest IS NULL OR definition <= :newest)
   AND (EXISTS (SELECT 1 FROM fsm_runs AS child WHERE child.parent = fsm_runs.id AND child.turn = 1)
        OR status = 'running' OR due <= :now OR (status = 'failed' AND error IS NOT NULL AND undo ->> 'ends' IS NULL))
   AND (owner IS NULL OR owner NOT IN (SELECT token FROM fsm_owners WHERE lease > :now))
   AND key NOT IN (SELECT value FROM json_each(:but))
 ORDER BY id LIMIT 1;

-- name: census
-- What has not ended, by workflow, version, structure and owner.
SELECT workflow, definition, structure, owner, count(*) AS many
  FROM fsm_runs
 WHERE status IN ('running', 'waiting', 'paused', 'compensating')
 GROUP BY workflow, definition, structure, owner ORDER BY workflow, definition, structure, owner;

-- name: journal_mode
PRAGMA journal_mode;

-- name: overdue
-- Since when the oldest due run of these workflows waits that no live owner holds.
SELECT due FROM fsm_runs
 WHERE due <= :now AND +workflow IN (SELECT value FROM json_each(:workflows))
   AND (owner IS NULL OR owner NOT IN (SELECT token FROM fsm_owners WHERE lease > :now))
 ORDER BY due LIMIT 1;

-- name: prunable
-- Ended runs of a workflow that nothing has happened to since then, the oldest first. A child goes after its parent is
-- over, a parent after its children have ended.
SELECT id FROM fsm_runs
 WHERE workflow = :workflow AND status IN (SELECT value FROM json_each(:statuses)) AND updated < :before
   AND due IS NULL AND owner IS NULL
   AND NOT EXISTS (
        SELECT 1 FROM fsm_runs AS above
         WHERE above.id = fsm_runs.parent
           AND NOT (above.status IN ('done', 'cancelled')
                    OR (above.status = 'failed' AND (above.error IS NULL OR above.undo ->> 'ends' IS NOT NULL))))
   AND NOT EXISTS (
        SELECT 1 FROM fsm_runs AS below
         WHERE below.parent = fsm_runs.id AND below.status IN ('running', 'waiting', 'paused', 'compensating'))
 ORDER BY id LIMIT :many;

-- name: prune
-- Of these runs those that still are as they were go, each with all runs below it. The newest row of all stays: its id
-- would be given again, and what is in flight knows a run by its id.
WITH RECURSIVE family (root, id) AS (
    SELECT id, id FROM fsm_runs
     WHERE id IN (SELECT value FROM json_each(:ids))
       AND status IN (SELECT value FROM json_each(:statuses)) AND updated < :before AND due IS NULL AND owner IS NULL
    UNION
    SELECT root, below.id FROM family JOIN fsm_runs AS below ON below.parent = family.id),
kept (root) AS (
    SELECT root FROM family JOIN fsm_runs AS run ON run.id = family.id
     WHERE run.status IN ('running', 'waiting', 'paused', 'compensating') OR run.owner IS NOT NULL
        OR run.id = (SELECT max(id) FROM fsm_runs))
DELETE FROM fsm_runs WHERE id IN (SELECT id FROM family WHERE root NOT IN (SELECT root FROM kept))
RETURNING id;

-- name: prune_moves
DELETE FROM fsm_moves WHERE run IN (SELECT value FROM json_each(?));

-- name: prune_events
DELETE FROM fsm_events WHERE run IN (SELECT value FROM json_each(?));

-- name: prune_calls
DELETE FROM fsm_calls WHERE run IN (SELECT value FROM json_each(?));

-- name: prune_fields
DELETE FROM fsm_fields WHERE run IN (SELECT value FROM json_each(?));

-- name: trim_moves
DELETE FROM fsm_moves
 WHERE run = :run AND version > 0 AND version < :before
   AND EXISTS (SELECT 1 FROM fsm_runs WHERE id = :run AND owner = :owner AND epoch = :epoch);

-- name: trim_events
DELETE FROM fsm_events
 WHERE run = :run AND status <> 'waiting' AND version < :before
   AND EXISTS (SELECT 1 FROM fsm_runs WHERE id = :run AND owner = :owner AND epoch = :epoch);

-- name: rows
-- How many rows each table has.
SELECT 'fsm_runs' AS name, count(*) AS many FROM fsm_runs
UNION ALL SELECT 'fsm_moves', count(*) FROM fsm_moves
UNION ALL SELECT 'fsm_events', count(*) FROM fsm_events
UNION ALL SELECT 'fsm_calls', count(*) FROM fsm_calls
UNION ALL SELECT 'fsm_fields', count(*) FROM fsm_fields
UNION ALL SELECT 'fsm_owners', count(*) FROM fsm_owners;

-- name: bytes
-- The pages of each table with its indexes. Not every SQLite is built with dbstat.
SELECT tbl_name AS name, sum(pgsize) AS bytes
  FROM dbstat JOIN sqlite_master USING (name)
 WHERE tbl_name LIKE 'fsm\_%' ESCAPE '\'
 GROUP BY tbl_name;

-- name: weights
-- Of each workflow its runs, those that have not ended, and the bytes of text that they hold.
WITH held (run, bytes) AS (
    SELECT id, length(data) + length(active) FROM fsm_runs
    UNION ALL
    SELECT run, coalesce(length(changes), 0) + coalesce(length(asked), 0) + coalesce(length(error), 0) FROM fsm_moves
    UNION ALL SELECT run, coalesce(length(payload), 0) FROM fsm_events
    UNION ALL SELECT run, length(result) FROM fsm_calls
    UNION ALL SELECT run, length(text) FROM fsm_fields),
summed (run, bytes) AS (SELECT run, sum(bytes) FROM held GROUP BY run)
SELECT workflow, count(*) AS runs, sum(bytes) AS bytes,
       sum(status IN ('running', 'waiting', 'paused', 'compensating')) AS unfinished
  FROM summed JOIN fsm_runs ON id = run
 GROUP BY workflow ORDER BY workflow;

-- name: vacuum
-- Each by itself, outside any transaction.
VACUUM; PRAGMA optimize; PRAGMA wal_checkpoint(TRUNCATE);

-- name: release
UPDATE fsm_runs SET owner = NULL WHERE id = ? AND owner = ? AND epoch = ?;

-- name: list
SELECT * FROM fsm_runs
 WHERE (?1 IS NULL OR workflow = ?1)
   AND (?2 IS NULL OR status = ?2)
   AND (?3 IS NULL OR state = ?3)
   AND id > ?4
 ORDER BY id LIMIT ?5;

-- name: history
SELECT * FROM fsm_moves WHERE run = ? ORDER BY version;

-- name: enrol
INSERT INTO fsm_owners (token, machine, process, lease, started, draining) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (token) DO UPDATE SET lease = excluded.lease, draining = excluded.draining;

-- name: renew
UPDATE fsm_owners SET lease = ? WHERE token = ?;

-- name: owners
SELECT token, machine, process, lease, started, draining FROM fsm_owners;

-- name: bury
-- One that was ending stays for as long as runs bear its name, so that whoever claims them knows that they are not to
-- blame.
DELETE FROM fsm_owners
 WHERE token = ?1
   AND (draining = 0 OR NOT EXISTS (SELECT 1 FROM fsm_runs WHERE due IS NOT NULL AND owner = ?1));

-- name: end_lease
UPDATE fsm_owners SET lease = min(lease, ?) WHERE token = ?;

-- name: tables
SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'fsm\_%' ESCAPE '\';

-- name: migrations
SELECT version FROM fsm_migrations ORDER BY version;

-- name: migrations_table
CREATE TABLE IF NOT EXISTS fsm_migrations (version INTEGER PRIMARY KEY, name TEXT NOT NULL, at REAL NOT NULL);

-- name: migrated
INSERT INTO fsm_migrations (version, name, at) VALUES (?, ?, ?);

-- name: reset
DELETE FROM fsm_runs; DELETE FROM fsm_events; DELETE FROM fsm_moves; DELETE FROM fsm_calls; DELETE FROM fsm_fields;

-- name: run_children
-- The children of a run, on one level, for an export.
SELECT * FROM fsm_runs WHERE parent = ? ORDER BY id;

-- name: run_events
-- All events of a run in the order of their posting.
SELECT * FROM fsm_events WHERE run = ? ORDER BY id;

-- name: run_calls
SELECT * FROM fsm_calls WHERE run = ?;

-- name: run_fields
SELECT * FROM fsm_fields WHERE run = ?;

-- name: import_run
-- A run of another store, as nobody's.
INSERT INTO fsm_runs
       (workflow, key, definition, structure, status, state, active, data, version, due, epoch, posted, error, actions,
        undo, input, parent, parent_state, parent_visit, ordinal, joining, deadline, deaths, created, updated, turn, depth)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (workflow, key) DO NOTHING
RETURNING id;

-- name: import_move
INSERT INTO fsm_moves
       (run, version, at, began, event, trigger, source, dest, status, attempt, owner, epoch, changes, removed, asked, error,
        detail)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: import_event
INSERT INTO fsm_events
       (run, event_id, name, payload, due, state, visit, status, version, remaining, created, next, first)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: import_call
INSERT INTO fsm_calls
       (run, state, visit, name, nth, result)
VALUES (?, ?, ?, ?, ?, ?);

-- name: import_field
INSERT INTO fsm_fields
       (run, hash, text)
VALUES (?, ?, ?);
