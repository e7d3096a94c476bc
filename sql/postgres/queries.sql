-- Every statement that the PostgreSQL store makes. A block is named by its first line; the method of that name uses it.
-- What writes several runs in one statement first locks their rows in the order of their ids, so that two batches of
-- two processes cannot wait for each other. What posts an event, or makes a run due that nobody drives, rings for the
-- run's owner, or for all that work: `pg_notify`, which takes a lock at COMMIT and so has no place in plain moves.

-- name: advance
-- One move onto one row, with its history; version, owner and epoch fence it. An event that was posted meanwhile leaves
-- the run due now. A row that `keeps` stays due when it was, with its owner.
WITH hit AS (
    UPDATE fsm_runs
       SET status = $2, state = $3, active = $4, data = $5, version = $6, definition = $7, structure = $8,
           due = CASE WHEN posted <> $9 THEN least(coalesce(due, $11), $11) WHEN $10 THEN due ELSE $18 END,
           owner = CASE WHEN $10 THEN owner ELSE $19 END,
           error = $20, actions = $21, undo = $22, deaths = $12, updated = coalesce($23, $11), deadline = $30
     WHERE id = $1 AND version = $6 - 1 AND owner = $13 AND epoch = $14
    RETURNING id)
INSERT INTO fsm_moves
       (run, version, at, began, event, trigger, source, dest, status,
        attempt, owner, epoch, changes, removed, asked, error)
SELECT id, $6, $11, $24, $15, $25, $16, $3, $2,
       $17, $13, $14, $26, $27, $28, $29
  FROM hit;

-- name: advance_many
-- The same for many moves, one of each run. Of a column that is the same throughout only the first element is given, of
-- one that is NULL throughout none: what a driver spends on an array is by the element. `unnest` fills up with NULL.
WITH held AS MATERIALIZED (
    SELECT id FROM fsm_runs WHERE id = ANY ($1::bigint[]) ORDER BY id FOR NO KEY UPDATE),
hit AS (
    UPDATE fsm_runs
       SET status = move.status, state = move.state, active = move.active, data = move.data, version = move.version,
           definition = move.definition, structure = move.structure,
           due = CASE WHEN posted <> seen THEN least(coalesce(fsm_runs.due, at), at)
                      WHEN keeps THEN fsm_runs.due ELSE move.due END,
           owner = CASE WHEN keeps THEN mover ELSE move.owner END,
           error = move.error, actions = move.actions, undo = move.undo, deaths = move.deaths,
           updated = coalesce(move.updated, at), deadline = move.deadline
      FROM
          (SELECT run, coalesce(status, ($2::text[])[1]) AS status, coalesce(state, ($3::text[])[1]) AS state,
                  coalesce(active, ($4::text[])[1]) AS active, coalesce(data, ($5::text[])[1]) AS data,
                  coalesce(version, ($6::bigint[])[1]) AS version,
                  coalesce(definition, ($7::bigint[])[1]) AS definition,
                  coalesce(structure, ($8::text[])[1]) AS structure, coalesce(seen, ($9::bigint[])[1]) AS seen,
                  coalesce(keeps, ($10::bool[])[1]) AS keeps, coalesce(at, ($11::float8[])[1]) AS at,
                  coalesce(deaths, ($12::bigint[])[1]) AS deaths, coalesce(mover, ($13::text[])[1]) AS mover,
                  coalesce(epoch, ($14::bigint[])[1]) AS epoch, coalesce(event, ($15::text[])[1]) AS event,
                  coalesce(source, ($16::text[])[1]) AS source, coalesce(attempt, ($17::bigint[])[1]) AS attempt,
                  due, owner, error, actions, undo, updated, began, trigger, changes, removed, asked, failure, deadline
             FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],
                         $7::bigint[], $8::text[], $9::bigint[], $10::bool[], $11::float8[], $12::bigint[],
                         $13::text[], $14::bigint[], $15::text[], $16::text[], $17::bigint[], $18::float8[],
                         $19::text[], $20::text[], $21::text[], $22::text[], $23::float8[], $24::float8[],
                         $25::text[], $26::text[], $27::text[], $28::text[], $29::text[], $30::float8[])
                  AS move (run, status, state, active, data, version, definition, structure, seen, keeps, at,
                           deaths, mover, epoch, event, source, attempt, due, owner, error, actions, undo,
                           updated, began, trigger, changes, removed, asked, failure, deadline)) AS move
     WHERE (SELECT count(*) FROM held) > 0
       AND id = run AND fsm_runs.version = move.version - 1 AND fsm_runs.owner = mover AND fsm_runs.epoch = move.epoch
    RETURNING move.*)
INSERT INTO fsm_moves
       (run, version, at, began, event, trigger, source, dest, status,
        attempt, owner, epoch, changes, removed, asked, error)
SELECT run, version, at, began, event, trigger, source, state, status,
       attempt, mover, epoch, changes, removed, asked, failure
  FROM hit;

-- name: advance_event
-- advance, for a move that takes an event from outside. One of the inbox is number $39, and still waits. One without a
-- number is new: none other must have been posted meanwhile. The remembered calls of one visit
-- may go along.
WITH hit AS (
    UPDATE fsm_runs
       SET status = $2, state = $3, active = $4, data = $5, version = $6, definition = $7, structure = $8,
           posted = posted + CASE WHEN $39::bigint IS NULL THEN 1 ELSE 0 END,
           due = CASE WHEN posted <> $9 THEN least(coalesce(due, $11), $11) WHEN $10 THEN due ELSE $18 END,
           owner = CASE WHEN $10 THEN owner ELSE $19 END,
           error = $20, actions = $21, undo = $22, deaths = $12, updated = coalesce($23, $11), deadline = $30
     WHERE id = $1 AND version = $6 - 1 AND owner = $13 AND epoch = $14
       AND CASE WHEN $39::bigint IS NULL
                THEN posted = $9 AND NOT EXISTS (SELECT FROM fsm_events WHERE run = $1 AND event_id = $31)
                ELSE EXISTS (SELECT FROM fsm_events
                              WHERE fsm_events.id = $39 AND run = $1 AND fsm_events.status = 'waiting') END
    RETURNING id),
inserted AS (
    INSERT INTO fsm_events (run, event_id, name, payload, due, state, visit, status, version, created)
    SELECT id, $31, $15, $32, $33, $34, $35, $36, $6, $11 FROM hit WHERE $39::bigint IS NULL),
marked AS (
    UPDATE fsm_events SET status = $36, version = $6 FROM hit WHERE fsm_events.id = $39),
forgotten AS (
    DELETE FROM fsm_calls USING hit
     WHERE fsm_calls.run = hit.id AND fsm_calls.state = $37 AND fsm_calls.visit = $38)
INSERT INTO fsm_moves
       (run, version, at, began, event, trigger, source, dest, status,
        attempt, owner, epoch, changes, removed, asked, error)
SELECT id, $6, $11, $24, $15, $25, $16, $3, $2,
       $17, $13, $14, $26, $27, $28, $29
  FROM hit;

-- name: advance_with
-- advance_many, with large fields to keep, remembered calls to forget, new events to insert and those of the inbox to
-- mark, and inboxes to empty. What was posted since this statement began is not seen here: it leaves the run due.
WITH new AS MATERIALIZED (
    SELECT *
      FROM unnest($37::bigint[], $38::text[], $39::text[], $40::text[], $41::float8[], $42::text[], $43::bigint[],
                  $44::text[], $45::bigint[], $46::float8[])
           AS new (run, event_id, name, payload, due, state, visit, status, version, created)),
old AS MATERIALIZED (
    SELECT * FROM unnest($47::text[], $48::bigint[], $49::bigint[], $50::bigint[]) AS old (status, version, id, run)),
held AS MATERIALIZED (
    SELECT id FROM fsm_runs WHERE id = ANY ($1::bigint[]) ORDER BY id FOR NO KEY UPDATE),
hit AS (
    UPDATE fsm_runs
       SET status = move.status, state = move.state, active = move.active, data = move.data, version = move.version,
           definition = move.definition, structure = move.structure,
           posted = posted + CASE WHEN fsm_runs.id IN (SELECT new.run FROM new) THEN 1 ELSE 0 END,
           due = CASE WHEN posted <> seen THEN least(coalesce(fsm_runs.due, at), at)
                      WHEN keeps THEN fsm_runs.due ELSE move.due END,
           owner = CASE WHEN keeps THEN mover ELSE move.owner END,
           error = move.error, actions = move.actions, undo = move.undo, deaths = move.deaths,
           updated = coalesce(move.updated, at), deadline = move.deadline
      FROM
          (SELECT run, coalesce(status, ($2::text[])[1]) AS status, coalesce(state, ($3::text[])[1]) AS state,
                  coalesce(active, ($4::text[])[1]) AS active, coalesce(data, ($5::text[])[1]) AS data,
                  coalesce(version, ($6::bigint[])[1]) AS version,
                  coalesce(definition, ($7::bigint[])[1]) AS definition,
                  coalesce(structure, ($8::text[])[1]) AS structure, coalesce(seen, ($9::bigint[])[1]) AS seen,
                  coalesce(keeps, ($10::bool[])[1]) AS keeps, coalesce(at, ($11::float8[])[1]) AS at,
                  coalesce(deaths, ($12::bigint[])[1]) AS deaths, coalesce(mover, ($13::text[])[1]) AS mover,
                  coalesce(epoch, ($14::bigint[])[1]) AS epoch, coalesce(event, ($15::text[])[1]) AS event,
                  coalesce(source, ($16::text[])[1]) AS source, coalesce(attempt, ($17::bigint[])[1]) AS attempt,
                  due, owner, error, actions, undo, updated, began, trigger, changes, removed, asked, failure, deadline
             FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],
                         $7::bigint[], $8::text[], $9::bigint[], $10::bool[], $11::float8[], $12::bigint[],
                         $13::text[], $14::bigint[], $15::text[], $16::text[], $17::bigint[], $18::float8[],
                         $19::text[], $20::text[], $21::text[], $22::text[], $23::float8[], $24::float8[],
                         $25::text[], $26::text[], $27::text[], $28::text[], $29::text[], $30::float8[])
                  AS move (run, status, state, active, data, version, definition, structure, seen, keeps, at,
                           deaths, mover, epoch, event, source, attempt, due, owner, error, actions, undo,
                           updated, began, trigger, changes, removed, asked, failure, deadline)) AS move
     WHERE (SELECT count(*) FROM held) > 0
       AND id = run AND fsm_runs.version = move.version - 1 AND fsm_runs.owner = mover AND fsm_runs.epoch = move.epoch
       AND (posted = seen OR fsm_runs.id NOT IN (SELECT new.run FROM new))
       AND fsm_runs.id NOT IN (SELECT run FROM new JOIN fsm_events USING (run, event_id))
       AND fsm_runs.id NOT IN (SELECT old.run FROM old LEFT JOIN fsm_events AS there
                                   ON there.id = old.id AND there.run = old.run AND there.status = 'waiting'
                                WHERE there.id IS NULL)
    RETURNING move.*),
kept AS (
    INSERT INTO fsm_fields (run, hash, text)
    SELECT field.run, field.hash, field.text
      FROM unnest($31::bigint[], $32::text[], $33::text[]) AS field (run, hash, text) JOIN hit ON hit.run = field.run
        ON CONFLICT DO NOTHING),
forgotten AS (
    DELETE FROM fsm_calls
     USING unnest($34::bigint[], $35::text[], $36::bigint[]) AS gone (run, state, visit), hit
     WHERE fsm_calls.run = gone.run AND fsm_calls.state = gone.state AND fsm_calls.visit = gone.visit
       AND hit.run = gone.run),
inserted AS (
    INSERT INTO fsm_events (run, event_id, name, payload, due, state, visit, status, version, created)
    SELECT new.* FROM new JOIN hit ON hit.run = new.run),
marked AS (
    UPDATE fsm_events SET status = old.status, version = old.version
      FROM old JOIN hit ON hit.run = old.run
     WHERE fsm_events.id = old.id),
dropped AS (
    UPDATE fsm_events SET status = 'dropped', version = ended.version
      FROM unnest($51::bigint[], $52::bigint[]) AS ended (version, run) JOIN hit ON hit.run = ended.run
     WHERE fsm_events.run = ended.run AND fsm_events.status = 'waiting'
       AND fsm_events.id NOT IN (SELECT old.id FROM old))
INSERT INTO fsm_moves
       (run, version, at, began, event, trigger, source, dest, status,
        attempt, owner, epoch, changes, removed, asked, error)
SELECT run, version, at, began, event, trigger, source, state, status,
       attempt, mover, epoch, changes, removed, asked, failure
  FROM hit;

-- name: detail
-- What else history says of moves, in the transaction that makes them.
UPDATE fsm_moves SET detail = said.detail
  FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS said (run, version, detail)
 WHERE fsm_moves.run = said.run AND fsm_moves.version = said.version;

-- name: lock
-- All rows that a transaction of several statements writes, by id, by name, or as the children of a visit, in the order of
-- their ids. (Of the child whose turn comes the number is not known yet: it is locked after its parent.)
SELECT id FROM fsm_runs
 WHERE id IN (SELECT unnest($1::bigint[])
              UNION
              SELECT there.id
                FROM unnest($2::text[], $3::text[]) AS named (workflow, key) JOIN fsm_runs AS there USING (workflow, key)
              UNION
              SELECT child.id
                FROM unnest($4::bigint[], $5::text[], $6::bigint[]) AS visit (run, state, number)
                JOIN fsm_runs AS child ON parent = run AND parent_state = visit.state AND parent_visit = number)
 ORDER BY id FOR NO KEY UPDATE;

-- name: create
-- New runs, with their first row of history and their large fields. Those whose key was free come back. Ids are given
-- in the order of the arrays; keys are taken in their own order, so that two batches cannot wait for each other.
WITH run AS MATERIALIZED (
    SELECT nextval('fsm_runs_id_seq') AS id, run.*
      FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                  $9::bigint[], $10::float8[], $11::text[], $12::bigint[], $13::text[], $14::float8[], $15::float8[],
                  $16::text[], $17::float8[])
           AS run (workflow, key, definition, structure, status, state, active, data,
                   version, due, owner, epoch, input, created, updated, actions, deadline)),
made AS (
    INSERT INTO fsm_runs
           (id, workflow, key, definition, structure, status, state, active, data,
            version, due, owner, epoch, input, created, updated, actions, deadline)
    SELECT * FROM run ORDER BY workflow, key
        ON CONFLICT (workflow, key) DO NOTHING
    RETURNING *),
begun AS (
    INSERT INTO fsm_moves (run, version, at, event, source, dest, status, attempt, owner, epoch, changes)
    SELECT id, 0, created, '$start', '', state, status, 1, owner, epoch, nullif(data, '{}') FROM made),
kept AS (
    INSERT INTO fsm_fields (run, hash, text)
    SELECT made.id, field.hash, field.text
      FROM unnest($18::text[], $19::text[], $20::text[], $21::text[]) AS field (workflow, key, hash, text)
      JOIN made ON made.workflow = field.workflow AND made.key = field.key
        ON CONFLICT DO NOTHING)
SELECT id, workflow, key, CASE WHEN owner IS NULL THEN pg_notify('fsmworkflow', '') END FROM made;

-- name: start_children
-- As create, for children: nobody's yet, and waiting for their turn.
WITH child AS MATERIALIZED (
    SELECT nextval('fsm_runs_id_seq') AS id, child.*, 0 AS turn
      FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                  $9::bigint[], $10::float8[], $11::text[], $12::bigint[], $13::text[], $14::float8[], $15::float8[],
                  $16::text[], $17::float8[], $18::bigint[], $19::text[], $20::bigint[], $21::bigint[], $22::bigint[])
           AS child (workflow, key, definition, structure, status, state, active, data,
                     version, due, owner, epoch, input, created, updated, actions, deadline,
                     parent, parent_state, parent_visit, ordinal, depth)),
made AS (
    INSERT INTO fsm_runs
           (id, workflow, key, definition, structure, status, state, active, data,
            version, due, owner, epoch, input, created, updated, actions, deadline,
            parent, parent_state, parent_visit, ordinal, depth, turn)
    SELECT * FROM child ORDER BY workflow, key
        ON CONFLICT (workflow, key) DO NOTHING
    RETURNING *),
begun AS (
    INSERT INTO fsm_moves (run, version, at, event, source, dest, status, attempt, epoch, changes)
    SELECT id, 0, created, '$start', '', state, status, 1, 0, nullif(data, '{}') FROM made)
INSERT INTO fsm_fields (run, hash, text)
SELECT made.id, field.hash, field.text
  FROM unnest($23::text[], $24::text[], $25::text[], $26::text[]) AS field (workflow, key, hash, text)
  JOIN made ON made.workflow = field.workflow AND made.key = field.key
    ON CONFLICT DO NOTHING;

-- name: tell_children
-- The engine's own events to those children of a visit to whom each says something. The count of a visit that is left, or
-- whose run has failed, is dropped; children whose turn has not come are cancelled here. One that is retried counts again,
-- and so does one that was let go on by hand. One that has failed and has its turn is told to go on, and does not know yet.
WITH told AS MATERIALIZED (
    SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::float8[])
                  AS told (run, state, visit, name, version, at)),
dropped AS (
    UPDATE fsm_events SET status = 'dropped', version = told.version
      FROM told
     WHERE told.name IN ('$cancel', '$pause') AND fsm_events.run = told.run AND fsm_events.name = '$joined'
       AND fsm_events.state = told.state AND fsm_events.visit = told.visit
       AND fsm_events.status IN ('joining', 'waiting')),
unbegun AS (
    UPDATE fsm_runs
       SET status = 'cancelled', version = 1, due = NULL, actions = NULL, turn = 2, updated = told.at
      FROM told
     WHERE told.name = '$cancel' AND parent = told.run AND parent_state = told.state AND parent_visit = told.visit
       AND turn = 0 AND fsm_runs.version = 0 AND posted = 0 AND owner IS NULL
    RETURNING fsm_runs.id, fsm_runs.state, told.at),
going AS (
    UPDATE fsm_runs SET turn = 1
      FROM told
     WHERE told.name = '$retry' AND parent = told.run AND parent_state = told.state AND parent_visit = told.visit
       AND turn = 2 AND status IN ('running', 'waiting', 'paused', 'compensating')),
history AS (
    INSERT INTO fsm_moves (run, version, at, event, source, dest, status, attempt, epoch)
    SELECT id, 1, at, '$cancel', state, state, 'cancelled', 1, 0 FROM unbegun),
sent AS (
    INSERT INTO fsm_events (run, event_id, name, due, status, created)
    SELECT child.id, told.name || '/' || told.version, told.name, told.at, 'waiting', told.at
      FROM told JOIN fsm_runs AS child
           ON child.parent = told.run AND child.parent_state = told.state AND child.parent_visit = told.visit
     WHERE CASE told.name
           WHEN '$cancel' THEN child.status IN ('running', 'waiting', 'paused')
             OR (child.status IN ('failed', 'parked') AND EXISTS (
                SELECT FROM fsm_events AS again
                 WHERE again.run = child.id AND again.name IN ('$retry', '$rerun') AND again.status = 'waiting'))
           WHEN '$pause' THEN turn = 1 AND child.status IN ('running', 'waiting', 'failed', 'parked')
           WHEN '$unpause' THEN turn = 1 AND (child.status = 'paused' OR EXISTS (
                SELECT FROM fsm_events AS pause
                 WHERE pause.run = child.id AND pause.name = '$pause' AND pause.status = 'waiting'))
           ELSE turn = 2 AND (child.status = 'parked' OR (child.status = 'failed' AND child.error IS NOT NULL
                                                          AND child.undo::json ->> 'ends' IS NULL)) END
       AND child.id NOT IN (SELECT id FROM unbegun)
        ON CONFLICT DO NOTHING
    RETURNING run, name, due)
UPDATE fsm_runs
   SET posted = posted + 1, due = least(coalesce(fsm_runs.due, sent.due), sent.due),
       turn = CASE WHEN sent.name = '$retry' THEN 1 ELSE turn END
  FROM sent
 WHERE fsm_runs.id = sent.run
RETURNING parent, workflow, key, pg_notify('fsmworkflow', coalesce(owner, ''));

-- name: arm
-- The counts of the children of visits: `$joined`, in the parents' inboxes, not yet to be seen there. So many children in
-- line get their turn as may have it. Where there is nothing to wait for, `$joined` is due at once.
WITH visit AS MATERIALIZED (
    SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::bool[], $7::float8[])
                  AS visit (run, state, number, event_id, concurrency, first, at)),
census AS MATERIALIZED (
    SELECT visit.*, count(*) FILTER (WHERE turn = 1) AS going,
           coalesce(min(ordinal) FILTER (WHERE turn = 0), max(ordinal) + 1, 0) AS line,
           count(*) FILTER (WHERE turn < 2) AS remaining,
           count(*) FILTER (WHERE turn = 2 AND status <> 'done') AS failed
      FROM visit LEFT JOIN fsm_runs ON parent = visit.run AND parent_state = visit.state AND parent_visit = number
     GROUP BY visit.run, visit.state, number, event_id, concurrency, first, at),
armed AS (
    INSERT INTO fsm_events (run, event_id, name, due, state, visit, status, remaining, next, first, created)
    SELECT run, event_id, '$joined', at, state, number,
           CASE WHEN remaining = 0 OR (first AND failed > 0) THEN 'waiting' ELSE 'joining' END, remaining,
           line + greatest(concurrency - going, 0), first::int, at
      FROM census
        ON CONFLICT DO NOTHING
    RETURNING *),
told AS (
    UPDATE fsm_runs SET posted = posted + many, due = least(coalesce(fsm_runs.due, now), now)
      FROM (SELECT run, count(*) AS many, min(due) AS now FROM armed WHERE status = 'waiting' GROUP BY run) AS one
     WHERE id = run
    RETURNING id AS parent, workflow, key, owner),
turned AS (
    UPDATE fsm_runs SET turn = 1, due = CASE WHEN fsm_runs.status = 'paused' THEN fsm_runs.due ELSE armed.due END
      FROM armed JOIN census ON census.event_id = armed.event_id AND census.run = armed.run CROSS JOIN LATERAL (
           SELECT id FROM fsm_runs AS child
            WHERE child.parent = armed.run AND child.parent_state = armed.state AND child.parent_visit = armed.visit
              AND turn = 0
            ORDER BY ordinal LIMIT greatest(concurrency - going, 0)) AS line
     WHERE armed.status = 'joining' AND fsm_runs.id = line.id
    RETURNING parent, workflow, key, owner)
SELECT parent, workflow, key, pg_notify('fsmworkflow', coalesce(owner, ''))
  FROM (SELECT * FROM told UNION ALL SELECT * FROM turned) AS due;

-- name: count_ends
-- Children that have ended: each counts once, however often it is retried.
WITH ended AS MATERIALIZED (
    SELECT id AS run, turn AS had
      FROM unnest($1::bigint[], $2::bigint[]) AS ended (run, at) JOIN fsm_runs ON id = run AND version = at
     WHERE turn < 2)
UPDATE fsm_runs SET turn = 2
  FROM ended
 WHERE id = run
RETURNING parent, parent_state, parent_visit, status <> 'done', had;

-- name: count_down
-- The last end, or the first failure where that is enough, makes `$joined` due; else the next in line have their turn,
-- as many as had it of those that ended. None before `next` is in line, and some after it may have ended there. What
-- was posted before is due before `$joined`, also where the clock of who posted it is ahead by less than a second.
WITH ended AS MATERIALIZED (
    SELECT run, state, visit, count(*) AS many, bool_or(failed) AS failed, sum(had)::bigint AS freed
      FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bool[], $5::bigint[])
           AS ended (run, state, visit, failed, had)
     GROUP BY run, state, visit),
counted AS (
    UPDATE fsm_events
       SET remaining = remaining - many, next = next + freed, created = $6,
           status = CASE WHEN remaining <= many OR (first = 1 AND failed) THEN 'waiting' ELSE 'joining' END,
           due = CASE WHEN remaining <= many OR (first = 1 AND failed)
                      THEN (SELECT greatest($6, max(sent.due)) FROM fsm_events AS sent
                             WHERE sent.run = ended.run AND sent.status = 'waiting' AND sent.due = sent.created
                               AND sent.due < $6 + 1)
                      ELSE $6 END
      FROM ended
     WHERE fsm_events.run = ended.run AND fsm_events.state = ended.state AND fsm_events.visit = ended.visit
       AND status = 'joining'
    RETURNING fsm_events.run, fsm_events.state, fsm_events.visit, status, next, freed),
told AS (
    UPDATE fsm_runs SET posted = posted + one.many, due = least(coalesce(due, $6), $6)
      FROM (SELECT run, count(*) AS many FROM counted WHERE status = 'waiting' GROUP BY run) AS one
     WHERE id = one.run
    RETURNING id AS parent, workflow, key, owner, true AS rings),
turned AS (
    UPDATE fsm_runs SET turn = 1, due = CASE WHEN fsm_runs.status = 'paused' THEN due ELSE $6 END
      FROM counted CROSS JOIN LATERAL (
           SELECT id FROM fsm_runs AS child
            WHERE child.parent = counted.run AND child.parent_state = counted.state
              AND child.parent_visit = counted.visit AND ordinal >= next - freed AND turn = 0
            ORDER BY ordinal LIMIT freed) AS line
     WHERE counted.status = 'joining' AND fsm_runs.id = line.id
    RETURNING parent, workflow, key, owner, false)  -- whoever ended the one before takes it
SELECT parent, workflow, key, CASE WHEN rings THEN pg_notify('fsmworkflow', coalesce(owner, '')) END
  FROM (SELECT * FROM told UNION ALL SELECT * FROM turned) AS due;

-- name: children
SELECT * FROM fsm_runs WHERE parent = $1 AND parent_state = $2 AND parent_visit = $3 ORDER BY ordinal;

-- name: below
-- The runs below one that can move by themselves by then, on every level: at once, or when they are due.
WITH RECURSIVE live AS (
    SELECT id, workflow, key, status, due FROM fsm_runs WHERE parent = $1 AND turn = 1
    UNION ALL
    SELECT child.id, child.workflow, child.key, child.status, child.due
      FROM live JOIN fsm_runs AS child ON child.parent = live.id AND child.turn = 1)
SELECT workflow, key, due, status IN ('running', 'compensating') AS busy FROM live
 WHERE due <= $2 OR (due IS NOT NULL AND status IN ('running', 'compensating'));

-- name: settle
-- What is no move: actions that were done are struck off, and the run is released. The version stays. What still waits
-- in the inboxes of runs that are over is dropped. The runs that were hit come back.
WITH hit AS (
    UPDATE fsm_runs
       SET actions = done.actions, owner = done.owner, error = done.error, flight = done.flight,
           due = CASE WHEN posted = done.seen THEN done.due ELSE least(coalesce(fsm_runs.due, done.at), done.at) END
      FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::float8[], $6::float8[], $7::bigint[],
                  $8::bigint[], $9::bigint[], $10::text[], $11::bigint[])
           AS done (actions, owner, error, seen, due, at, flight, run, version, mover, epoch)
     WHERE id = done.run AND fsm_runs.version = done.version
       AND fsm_runs.owner = done.mover AND fsm_runs.epoch = done.epoch
    RETURNING id),
dropped AS (
    UPDATE fsm_events SET status = 'dropped', version = ended.version
      FROM unnest($12::bigint[], $13::bigint[]) AS ended (version, run) JOIN hit ON hit.id = ended.run
     WHERE fsm_events.run = ended.run AND fsm_events.status = 'waiting')
SELECT id FROM hit;

-- name: census
-- What has not ended, by workflow, version, structure and owner.
SELECT workflow, definition, structure, owner, count(*) AS many
  FROM fsm_runs
 WHERE status IN ('running', 'waiting', 'paused', 'compensating')
 GROUP BY workflow, definition, structure, owner ORDER BY workflow, definition, structure, owner;

-- name: backend
-- The server process that answers, whatever stands between.
SELECT pg_backend_pid();

-- name: begin
-- What may hold rows locked: the server ends it where it hears no more of it.
BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = 5000;

-- name: impatient
-- From now on a transaction of a step's is as impatient as ours.
SET LOCAL idle_in_transaction_session_timeout = 5000;

-- name: lost
-- Of these server processes those that have long had nothing to do, that cannot get rid of their answer, or that are gone:
-- whoever still waits for one waits in vain. None where what answers is a pooler, whose numbers are its own.
SELECT coalesce(array_agg(pid), '{}') FROM unnest($2::int[]) AS asked (pid)
 WHERE $1 = pg_backend_pid()
   AND NOT EXISTS (SELECT FROM pg_stat_activity AS seen
                    WHERE seen.pid = asked.pid
                      AND ((state NOT LIKE 'idle%' AND wait_event IS DISTINCT FROM 'ClientWrite')
                           OR state IS NULL OR state_change > clock_timestamp() - interval '2 seconds'));

-- name: overdue
-- Since when the oldest due run of these workflows waits that no live owner holds.
SELECT due FROM fsm_runs
 WHERE due <= extract(epoch FROM clock_timestamp()) AND workflow = ANY ($1::text[])
   AND (owner IS NULL
        OR owner NOT IN (SELECT token FROM fsm_owners WHERE lease > extract(epoch FROM clock_timestamp())))
 ORDER BY due LIMIT 1;

-- name: prunable
-- Ended runs of a workflow that nothing has happened to since then, the oldest first. A child goes after its parent is
-- over, a parent after its children have ended.
SELECT id FROM fsm_runs
 WHERE workflow = $1 AND status = ANY ($2::text[]) AND updated < $3 AND due IS NULL AND owner IS NULL
   AND NOT EXISTS (
        SELECT FROM fsm_runs AS above
         WHERE above.id = fsm_runs.parent
           AND NOT (above.status IN ('done', 'cancelled')
                    OR (above.status = 'failed' AND (above.error IS NULL OR above.undo::json ->> 'ends' IS NOT NULL))))
   AND NOT EXISTS (
        SELECT FROM fsm_runs AS below
         WHERE below.parent = fsm_runs.id AND below.status IN ('running', 'waiting', 'paused', 'compensating'))
 ORDER BY id LIMIT $4;

-- name: prune_lock
-- These runs and all below them, so that nothing happens to them until they are gone.
WITH RECURSIVE family (id) AS (
    SELECT id FROM fsm_runs WHERE id = ANY ($1::bigint[])
    UNION
    SELECT below.id FROM family JOIN fsm_runs AS below ON below.parent = family.id)
SELECT id FROM fsm_runs WHERE id IN (SELECT id FROM family) ORDER BY id FOR UPDATE;

-- name: prune
-- Of these runs those that still are as they were go, each with all runs below it. How many went comes back.
WITH RECURSIVE family (root, id) AS (
    SELECT id, id FROM fsm_runs
     WHERE id = ANY ($1::bigint[]) AND status = ANY ($2::text[]) AND updated < $3 AND due IS NULL AND owner IS NULL
    UNION
    SELECT root, below.id FROM family JOIN fsm_runs AS below ON below.parent = family.id),
kept (root) AS (
    SELECT root FROM family JOIN fsm_runs AS run ON run.id = family.id
     WHERE run.status IN ('running', 'waiting', 'paused', 'compensating') OR run.owner IS NOT NULL),
gone AS (
    DELETE FROM fsm_runs WHERE id IN (SELECT id FROM family WHERE root NOT IN (SELECT root FROM kept))
    RETURNING id),
moves AS (DELETE FROM fsm_moves USING gone WHERE run = gone.id),
events AS (DELETE FROM fsm_events USING gone WHERE run = gone.id),
calls AS (DELETE FROM fsm_calls USING gone WHERE run = gone.id),
fields AS (DELETE FROM fsm_fields USING gone WHERE run = gone.id)
SELECT count(*) FROM gone;

-- name: trim
-- The moves of a run of ours between its start and a version, and the events that they took.
WITH mine AS (SELECT id FROM fsm_runs WHERE id = $1 AND owner = $2 AND epoch = $3),
events AS (DELETE FROM fsm_events USING mine WHERE run = mine.id AND fsm_events.status <> 'waiting' AND version < $4)
DELETE FROM fsm_moves USING mine WHERE run = mine.id AND version > 0 AND version < $4;

-- name: rows
-- How many rows each table has.
SELECT 'fsm_runs' AS name, count(*) AS many FROM fsm_runs
UNION ALL SELECT 'fsm_moves', count(*) FROM fsm_moves
UNION ALL SELECT 'fsm_events', count(*) FROM fsm_events
UNION ALL SELECT 'fsm_calls', count(*) FROM fsm_calls
UNION ALL SELECT 'fsm_fields', count(*) FROM fsm_fields
UNION ALL SELECT 'fsm_owners', count(*) FROM fsm_owners;

-- name: bytes
-- The size of each table with its indexes and what is stored beside it.
SELECT relname::text AS name, pg_total_relation_size(oid) AS bytes
  FROM pg_class
 WHERE relname LIKE 'fsm\_%' AND relkind IN ('r', 'p') AND pg_table_is_visible(oid);

-- name: weights
-- Of each workflow its runs, those that have not ended, and the bytes of text that they hold.
WITH held (run, bytes) AS (
    SELECT id, octet_length(data) + octet_length(active) FROM fsm_runs
    UNION ALL
    SELECT run, coalesce(octet_length(changes), 0) + coalesce(octet_length(asked), 0) + coalesce(octet_length(error), 0)
      FROM fsm_moves
    UNION ALL SELECT run, coalesce(octet_length(payload), 0) FROM fsm_events
    UNION ALL SELECT run, octet_length(result) FROM fsm_calls
    UNION ALL SELECT run, octet_length(text) FROM fsm_fields),
summed (run, bytes) AS (SELECT run, sum(bytes)::bigint FROM held GROUP BY run)
SELECT workflow, count(*) AS runs, sum(bytes)::bigint AS bytes,
       count(*) FILTER (WHERE status IN ('running', 'waiting', 'paused', 'compensating')) AS unfinished
  FROM summed JOIN fsm_runs ON id = run
 GROUP BY workflow ORDER BY workflow;

-- name: vacuum
-- Each by itself, outside any transaction.
VACUUM (ANALYZE) fsm_runs; VACUUM (ANALYZE) fsm_moves; VACUUM (ANALYZE) fsm_events; VACUUM (ANALYZE) fsm_calls;
VACUUM (ANALYZE) fsm_fields; VACUUM (ANALYZE) fsm_owners;

-- name: release
UPDATE fsm_runs SET owner = NULL
  FROM unnest($1::bigint[], $2::text[], $3::bigint[]) AS mine (run, owner, epoch)
 WHERE id = mine.run AND fsm_runs.owner = mine.owner AND fsm_runs.epoch = mine.epoch;

-- name: remember
-- Remembered calls, fenced like moves: only the run's owner of this epoch may add one, and no claim comes between. The
-- places in the arrays of those that may come back.
WITH held AS MATERIALIZED (
    SELECT call.*
      FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::text[],
                  $7::text[], $8::bigint[])
           WITH ORDINALITY AS call (run, state, visit, name, nth, result, mover, in_epoch, place)
      JOIN fsm_runs ON id = call.run AND owner = call.mover AND epoch = call.in_epoch
     ORDER BY id FOR NO KEY UPDATE OF fsm_runs),
kept AS (
    INSERT INTO fsm_calls (run, state, visit, name, nth, result)
    SELECT run, state, visit, name, nth, result FROM held
        ON CONFLICT DO NOTHING)
SELECT place FROM held;

-- name: survived
-- A remembered call is progress: whoever died with these runs in flight did not die of them.
UPDATE fsm_runs SET deaths = 0 WHERE id = ANY ($1::bigint[]);

-- name: recall
SELECT run, state, visit, name, nth, result FROM fsm_calls WHERE run = $1 AND state = $2 AND visit = $3;

-- name: moved
-- Which moves of this owner and epoch are there: how an unknown COMMIT is resolved.
SELECT fsm_moves.run
  FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[]) AS mine (run, version, owner, epoch)
  JOIN fsm_moves USING (run, version)
 WHERE fsm_moves.owner = mine.owner AND fsm_moves.epoch = mine.epoch;

-- name: settled
SELECT id
  FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[]) AS done (run, version, epoch, owner)
  JOIN fsm_runs ON id = done.run AND fsm_runs.version = done.version AND fsm_runs.epoch = done.epoch
   AND fsm_runs.owner IS NOT DISTINCT FROM done.owner;

-- name: post
-- Events into inboxes, a repeated one once. Posting adds to `posted`, never to `version`: a move that was decided
-- meanwhile holds, and leaves the run due now. A child that waits for its turn is made due by the engine's own events
-- only. Those that were new come back.
WITH event AS MATERIALIZED (
    SELECT *
      FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::text[], $6::bigint[],
                  $7::text[], $8::text[])
           WITH ORDINALITY AS event (event_id, name, payload, due, state, visit, workflow, key, place)),
run AS MATERIALIZED (
    SELECT id, workflow, key, owner FROM fsm_runs
     WHERE (workflow, key) IN (SELECT event.workflow, event.key FROM event)
       AND NOT (status IN ('done', 'cancelled')
            OR (status = 'failed' AND (error IS NULL OR undo::json ->> 'ends' IS NOT NULL)))
     ORDER BY id FOR NO KEY UPDATE),
made AS (
    INSERT INTO fsm_events (run, event_id, name, payload, due, state, visit, created)
    SELECT run.id, event_id, name, payload, due, state, visit, $9::float8
      FROM event JOIN run USING (workflow, key)
     ORDER BY place
        ON CONFLICT (run, event_id) DO NOTHING
    RETURNING id, run, event_id, name, due),
counted AS (
    UPDATE fsm_runs
       SET posted = posted + new.many,
           due = CASE WHEN turn = 0 AND NOT new.own THEN fsm_runs.due ELSE least(coalesce(fsm_runs.due, new.due), new.due) END
      FROM (SELECT run, count(*) AS many, min(due) AS due, bool_or(name LIKE '$%') AS own FROM made GROUP BY run) AS new
     WHERE fsm_runs.id = new.run)
SELECT run.workflow, run.key, made.event_id, made.id, pg_notify('fsmworkflow', coalesce(run.owner, ''))
  FROM made JOIN run ON run.id = made.run;

-- name: emit
-- As post, for what steps emitted: an event whose run has ended is kept there as dropped. Several of one run are summed.
WITH event AS MATERIALIZED (
    SELECT *
      FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::text[], $6::bigint[],
                  $7::text[], $8::text[])
           WITH ORDINALITY AS event (event_id, name, payload, due, state, visit, workflow, key, place)),
run AS MATERIALIZED (
    SELECT id, workflow, key,
           status IN ('done', 'cancelled')
               OR (status = 'failed' AND (error IS NULL OR undo::json ->> 'ends' IS NOT NULL)) AS over
      FROM fsm_runs WHERE (workflow, key) IN (SELECT event.workflow, event.key FROM event)
     ORDER BY id FOR NO KEY UPDATE),
made AS (
    INSERT INTO fsm_events (run, event_id, name, payload, due, state, visit, status, created)
    SELECT run.id, event_id, name, payload, due, state, visit, CASE WHEN over THEN 'dropped' ELSE 'waiting' END, $9::float8
      FROM event JOIN run USING (workflow, key)
     ORDER BY place
        ON CONFLICT (run, event_id) DO NOTHING
    RETURNING run, due, status)
UPDATE fsm_runs
   SET posted = posted + new.many,
       due = CASE WHEN turn = 0 THEN fsm_runs.due ELSE least(coalesce(fsm_runs.due, new.due), new.due) END
  FROM (SELECT run, count(*) AS many, min(due) AS due FROM made WHERE made.status = 'waiting' GROUP BY run) AS new
 WHERE fsm_runs.id = new.run
RETURNING pg_notify('fsmworkflow', coalesce(fsm_runs.owner, ''));

-- name: addressed
-- The runs that events are for, how they are and whether they have ended for good, and the events where they are known.
SELECT workflow AS to_workflow, key AS to_key, wanted, run.status AS run_status, over, fsm_events.*
  FROM unnest($1::text[], $2::text[], $3::text[]) AS event (workflow, key, wanted)
  JOIN (SELECT id, workflow, key, status,
               status IN ('done', 'cancelled')
                   OR (status = 'failed' AND (error IS NULL OR undo::json ->> 'ends' IS NOT NULL)) AS over
          FROM fsm_runs) AS run USING (workflow, key)
  LEFT JOIN fsm_events ON fsm_events.run = run.id AND fsm_events.event_id = wanted;

-- name: inbox
-- How many events were ever posted, and those that wait, in one row where there are none. The number of `$joined` is that
-- of its count, and so says nothing of its place.
SELECT posted, fsm_events.*
  FROM fsm_runs LEFT JOIN fsm_events ON run = fsm_runs.id AND fsm_events.status = 'waiting'
 WHERE fsm_runs.id = $1
 ORDER BY fsm_events.due, fsm_events.name = '$joined', fsm_events.id;

-- name: event
SELECT * FROM fsm_events WHERE run = $1 AND event_id = $2;

-- name: taken
SELECT * FROM fsm_events WHERE run = $1 AND version = $2 AND status = 'accepted';

-- name: woken
SELECT DISTINCT workflow, key, posted
  FROM fsm_events JOIN fsm_runs ON fsm_runs.id = run
 WHERE fsm_events.status = 'waiting' AND fsm_events.created >= $1 AND owner = $2;

-- name: held
-- Which runs still are as they were, at this version, with this owner and epoch.
SELECT id
  FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[]) AS mine (run, version, owner, epoch)
  JOIN fsm_runs ON id = run AND fsm_runs.version = mine.version
   AND fsm_runs.owner = mine.owner AND fsm_runs.epoch = mine.epoch;

-- name: load
SELECT * FROM fsm_runs WHERE workflow = $1 AND key = $2;

-- name: load_many
SELECT fsm_runs.* FROM unnest($1::text[], $2::text[]) AS wanted (workflow, key) JOIN fsm_runs USING (workflow, key);

-- name: fields
SELECT run, hash, text FROM unnest($1::bigint[], $2::text[]) AS wanted (run, hash) JOIN fsm_fields USING (run, hash);

-- name: claim
-- The due runs of these workflows, of no newer version than is given, that no live owner holds, oldest first, become
-- ours; but not those that are at the version that is given last. A row that another claimed since this statement began
-- is passed over: its owner may be too new to be among the live ones that are seen here. The inner look at `epoch` sees
-- the row as it was then, also where the outer one has waited for another. Leases are judged as of $9, when it was
-- asked for: a claim that was held up must not find those lapsed that were held up with it.
WITH live AS MATERIALIZED (
    SELECT token FROM fsm_owners WHERE lease > least(extract(epoch FROM clock_timestamp()), $9)),
known AS MATERIALIZED (
    SELECT * FROM unnest($3::text[], $6::bigint[]) AS known (name, newest)),
free AS MATERIALIZED (
    SELECT id FROM fsm_runs
     WHERE due <= $2 AND definition <= (SELECT newest FROM known WHERE name = workflow)
       AND (id, version) NOT IN (SELECT but.run, but.at FROM unnest($7::bigint[], $8::bigint[]) AS but (run, at))
       AND (owner IS NULL OR owner NOT IN (SELECT token FROM live))
       AND epoch = (SELECT seen.epoch FROM fsm_runs AS seen WHERE seen.id = fsm_runs.id)
     ORDER BY due, id LIMIT $4 FOR NO KEY UPDATE SKIP LOCKED)
UPDATE fsm_runs
   SET owner = $1, epoch = epoch + 1, claim = $5,
       deaths = deaths + CASE WHEN owner <> $1 AND due <= extract(epoch FROM clock_timestamp())
                               AND (deaths < 2 OR flight = epoch)
                               AND owner NOT IN (SELECT token FROM fsm_owners WHERE draining = 1) THEN 1 ELSE 0 END
 WHERE id IN (SELECT id FROM free)
RETURNING *;

-- name: claimable
-- The oldest of what a claim would take.
WITH live AS MATERIALIZED (
    SELECT token FROM fsm_owners WHERE lease > extract(epoch FROM clock_timestamp())),
known AS MATERIALIZED (
    SELECT * FROM unnest($2::text[], $3::bigint[]) AS known (name, newest))
SELECT id, version FROM fsm_runs
 WHERE due <= $1 AND definition <= (SELECT newest FROM known WHERE name = workflow)
   AND (id, version) NOT IN (SELECT but.run, but.at FROM unnest($4::bigint[], $5::bigint[]) AS but (run, at))
   AND (owner IS NULL OR owner NOT IN (SELECT token FROM live))
 ORDER BY due, id LIMIT 1;

-- name: claim_within
-- As claim, where some workflows have a limit: of these no more than there is room for, the oldest. Each that has room is a
-- line, all without a limit are one; of each line only as many are looked for as may be taken.
WITH live AS MATERIALIZED (
    SELECT token FROM fsm_owners WHERE lease > least(extract(epoch FROM clock_timestamp()), $11)),
known AS MATERIALIZED (
    SELECT * FROM unnest($3::text[], $6::bigint[]) AS known (name, newest)),
line AS MATERIALIZED (
    SELECT limited, free FROM unnest($9::text[], $10::bigint[]) AS room (limited, free) WHERE free > 0
     UNION ALL SELECT NULL, $4),
queue AS MATERIALIZED (
    SELECT found.id, found.due FROM line CROSS JOIN LATERAL (
        SELECT id, due FROM fsm_runs
         WHERE due <= $2 AND CASE WHEN limited IS NULL THEN workflow <> ALL ($9::text[]) ELSE workflow = limited END
           AND definition <= (SELECT newest FROM known WHERE known.name = workflow)
           AND (id, version) NOT IN (SELECT but.run, but.at FROM unnest($7::bigint[], $8::bigint[]) AS but (run, at))
           AND (owner IS NULL OR owner NOT IN (SELECT token FROM live))
         ORDER BY due, id LIMIT least(free, $4)) AS found),
free AS MATERIALIZED (
    SELECT id FROM fsm_runs
     WHERE id IN (SELECT queue.id FROM queue ORDER BY queue.due, queue.id LIMIT $4)
       AND (owner IS NULL OR owner NOT IN (SELECT token FROM live))
       AND epoch = (SELECT seen.epoch FROM fsm_runs AS seen WHERE seen.id = fsm_runs.id)
     ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
UPDATE fsm_runs
   SET owner = $1, epoch = epoch + 1, claim = $5,
       deaths = deaths + CASE WHEN owner <> $1 AND due <= extract(epoch FROM clock_timestamp())
                               AND (deaths < 2 OR flight = epoch)
                               AND owner NOT IN (SELECT token FROM fsm_owners WHERE draining = 1) THEN 1 ELSE 0 END
 WHERE id IN (SELECT id FROM free)
RETURNING *;

-- name: limits_lock
-- Held to the end of a claim of workflows that have a limit, so that two claims do not count the same room: a claim that
-- begins after it sees what the one before has made its own. Only processes that know such a workflow wait here.
SELECT pg_advisory_xact_lock(1718840696);

-- name: driven
-- How many runs of a workflow live owners hold, those that rest not counted.
SELECT count(*) FROM fsm_runs
 WHERE workflow = $1 AND due IS NOT NULL
   AND (status IN ('running', 'compensating') OR due <= extract(epoch FROM clock_timestamp()))
   AND owner IN (SELECT token FROM fsm_owners WHERE lease > extract(epoch FROM clock_timestamp()));

-- name: claimed
-- What a claim whose answer was lost has made ours.
SELECT * FROM fsm_runs WHERE due <= $2 AND owner = $1 AND claim = $3;

-- name: claim_one
-- One run becomes ours, whatever it waits for, unless a live owner holds it, or its definition is a newer one, or it is a
-- child in line for which there is nothing from a hand. Leases are judged as of $5, when it was asked for.
UPDATE fsm_runs
   SET owner = $1, epoch = epoch + 1,
       deaths = deaths + CASE WHEN owner <> $1 AND due <= extract(epoch FROM clock_timestamp())
                               AND (deaths < 2 OR flight = epoch)
                               AND owner NOT IN (SELECT token FROM fsm_owners WHERE draining = 1) THEN 1 ELSE 0 END
 WHERE workflow = $2 AND key = $3 AND ($4::bigint IS NULL OR definition <= $4)
   AND (owner IS NULL OR owner = $1
        OR owner NOT IN (SELECT token FROM fsm_owners WHERE lease > least(extract(epoch FROM clock_timestamp()), $5)))
   AND epoch = (SELECT seen.epoch FROM fsm_runs AS seen WHERE seen.id = fsm_runs.id)
   AND (turn IS DISTINCT FROM 0 OR due <= extract(epoch FROM clock_timestamp()))
RETURNING *;

-- name: oldest
-- The oldest run of a workflow that is running or due, has children that go on, or failed and may go on, and that no live
-- owner holds. Children are their parents' business.
SELECT key FROM fsm_runs
 WHERE workflow = $1 AND parent IS NULL AND ($3::bigint IS NULL OR definition <= $3)
   AND (EXISTS (SELECT FROM fsm_runs AS child WHERE child.parent = fsm_runs.id AND child.turn = 1)
        OR status = 'running' OR due <= extract(epoch FROM clock_timestamp())
        OR (status = 'failed' AND error IS NOT NULL AND undo::json ->> 'ends' IS NULL))
   AND (owner IS NULL
        OR owner NOT IN (SELECT token FROM fsm_owners WHERE lease > extract(epoch FROM clock_timestamp())))
   AND key <> ALL ($2::text[])
 ORDER BY id LIMIT 1;

-- name: list
SELECT * FROM fsm_runs
 WHERE ($1::text IS NULL OR workflow = $1)
   AND ($2::text IS NULL OR status = $2)
   AND ($3::text IS NULL OR state = $3)
   AND id > $4
 ORDER BY id LIMIT $5;

-- name: history
SELECT * FROM fsm_moves WHERE run = $1 ORDER BY version;

-- name: enrol
INSERT INTO fsm_owners (token, machine, process, lease, started, draining) VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (token) DO UPDATE SET lease = excluded.lease, draining = excluded.draining
RETURNING extract(epoch FROM clock_timestamp())::float8;

-- name: renew
UPDATE fsm_owners SET lease = $2 WHERE token = $1
RETURNING extract(epoch FROM clock_timestamp())::float8;

-- name: owners
SELECT token, machine, process, lease, started, draining FROM fsm_owners;

-- name: bury
-- One that was ending stays for as long as runs bear its name, so that whoever claims them knows that they are not to
-- blame.
WITH gone AS (
    DELETE FROM fsm_owners
     WHERE token = $1
       AND (draining = 0 OR NOT EXISTS (SELECT FROM fsm_runs WHERE due IS NOT NULL AND owner = $1))
    RETURNING token)
UPDATE fsm_owners SET lease = least(lease, extract(epoch FROM clock_timestamp()) - 1)
 WHERE token = $1 AND NOT EXISTS (SELECT FROM gone);

-- name: clock
SELECT extract(epoch FROM clock_timestamp())::float8;

-- name: schema_lock
-- Held round all DDL: CREATE TABLE IF NOT EXISTS by itself fails where two processes run it at once.
SELECT pg_advisory_xact_lock(1718840695);

-- name: tables
-- What a statement here would meet under one of our names.
SELECT relname FROM pg_class
 WHERE relname LIKE 'fsm\_%' AND relkind IN ('r', 'p', 'v', 'm', 'f') AND pg_table_is_visible(oid);

-- name: migrations
SELECT version FROM fsm_migrations ORDER BY version;

-- name: migrations_table
CREATE TABLE IF NOT EXISTS fsm_migrations
    (version bigint PRIMARY KEY, name text NOT NULL, at double precision NOT NULL);

-- name: migrated
INSERT INTO fsm_migrations (version, name, at) VALUES ($1, $2, extract(epoch FROM clock_timestamp()));

-- name: reset
DELETE FROM fsm_runs; DELETE FROM fsm_events; DELETE FROM fsm_moves; DELETE FROM fsm_calls; DELETE FROM fsm_fields;

-- name: legacy_table
-- Whether the table of the first FSM-Workflow is there, and not another one of that name.
SELECT count(*) = 7
  FROM pg_attribute
 WHERE attrelid = to_regclass('workflow_states') AND NOT attisdropped
   AND (attname::text, format_type(atttypid, NULL)) IN (
       ('workflow_id', 'uuid'), ('workflow_name', 'text'), ('current_state', 'text'), ('context', 'jsonb'),
       ('completed', 'boolean'), ('created_at', 'timestamp with time zone'), ('updated_at', 'timestamp with time zone'));

-- name: legacy_runs
-- What the first FSM-Workflow left unfinished, and what is no run of ours yet. Its table is only read.
SELECT workflow_id::text AS key, workflow_name AS workflow, current_state AS state, context::text AS context,
       extract(epoch FROM created_at)::float8 AS created, extract(epoch FROM updated_at)::float8 AS updated
  FROM workflow_states AS old
 WHERE completed IS NOT TRUE
   AND NOT EXISTS (SELECT FROM fsm_runs WHERE workflow = old.workflow_name AND key = old.workflow_id::text)
 ORDER BY created_at NULLS FIRST, workflow_id;

-- name: run_children
-- The children of a run, on one level, for an export.
SELECT * FROM fsm_runs WHERE parent = $1 ORDER BY id;

-- name: run_events
-- All events of a run in the order of their posting.
SELECT * FROM fsm_events WHERE run = $1 ORDER BY id;

-- name: run_calls
SELECT * FROM fsm_calls WHERE run = $1;

-- name: run_fields
SELECT * FROM fsm_fields WHERE run = $1;

-- name: import_run
-- A run of another store, as nobody's.
INSERT INTO fsm_runs
       (workflow, key, definition, structure, status, state, active, data, version, due, epoch, posted, error, actions,
        undo, input, parent, parent_state, parent_visit, ordinal, joining, deadline, deaths, created, updated, turn, depth)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24,
        $25, $26, $27)
    ON CONFLICT (workflow, key) DO NOTHING
RETURNING id;

-- name: import_move
INSERT INTO fsm_moves
       (run, version, at, began, event, trigger, source, dest, status, attempt, owner, epoch, changes, removed, asked, error,
        detail)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17);

-- name: import_event
INSERT INTO fsm_events
       (run, event_id, name, payload, due, state, visit, status, version, remaining, created, next, first)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13);

-- name: import_call
INSERT INTO fsm_calls
       (run, state, visit, name, nth, result)
VALUES ($1, $2, $3, $4, $5, $6);

-- name: import_field
INSERT INTO fsm_fields
       (run, hash, text)
VALUES ($1, $2, $3);
