-- Every statement that the PostgreSQL store makes. A block is named by its first line; the method of that name uses it.
-- What writes several runs in one statement first locks their rows in the order of their ids, so that two batches of
-- two processes cannot wait for each other.

-- name: advance
-- One move onto one row, with its history; version, owner and epoch fence it. An event that was posted meanwhile leaves
-- the run due now. A row that `keeps` stays due when it was, with its owner.
WITH hit AS (
    UPDATE fsm_runs
       SET status = $2, state = $3, active = $4, data = $5, version = $6, definition = $7, structure = $8,
           due = CASE WHEN posted <> $9 THEN least(coalesce(due, $11), $11) WHEN $10 THEN due ELSE $18 END,
           owner = CASE WHEN $10 THEN owner ELSE $19 END,
           error = $20, actions = $21, undo = $22, deaths = $12, updated = coalesce($23, $11)
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
           updated = coalesce(move.updated, at)
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
                  due, owner, error, actions, undo, updated, began, trigger, changes, removed, asked, failure
             FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],
                         $7::bigint[], $8::text[], $9::bigint[], $10::bool[], $11::float8[], $12::bigint[],
                         $13::text[], $14::bigint[], $15::text[], $16::text[], $17::bigint[], $18::float8[],
                         $19::text[], $20::text[], $21::text[], $22::text[], $23::float8[], $24::float8[],
                         $25::text[], $26::text[], $27::text[], $28::text[], $29::text[])
                  AS move (run, status, state, active, data, version, definition, structure, seen, keeps, at,
                           deaths, mover, epoch, event, source, attempt, due, owner, error, actions, undo,
                           updated, began, trigger, changes, removed, asked, failure)) AS move
     WHERE (SELECT count(*) FROM held) > 0
       AND id = run AND fsm_runs.version = move.version - 1 AND fsm_runs.owner = mover AND fsm_runs.epoch = move.epoch
    RETURNING move.*)
INSERT INTO fsm_moves
       (run, version, at, began, event, trigger, source, dest, status,
        attempt, owner, epoch, changes, removed, asked, error)
SELECT run, version, at, began, event, trigger, source, state, status,
       attempt, mover, epoch, changes, removed, asked, failure
  FROM hit;

-- name: advance_with
-- The same, with large fields to keep and remembered calls to forget.
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
           updated = coalesce(move.updated, at)
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
                  due, owner, error, actions, undo, updated, began, trigger, changes, removed, asked, failure
             FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],
                         $7::bigint[], $8::text[], $9::bigint[], $10::bool[], $11::float8[], $12::bigint[],
                         $13::text[], $14::bigint[], $15::text[], $16::text[], $17::bigint[], $18::float8[],
                         $19::text[], $20::text[], $21::text[], $22::text[], $23::float8[], $24::float8[],
                         $25::text[], $26::text[], $27::text[], $28::text[], $29::text[])
                  AS move (run, status, state, active, data, version, definition, structure, seen, keeps, at,
                           deaths, mover, epoch, event, source, attempt, due, owner, error, actions, undo,
                           updated, began, trigger, changes, removed, asked, failure)) AS move
     WHERE (SELECT count(*) FROM held) > 0
       AND id = run AND fsm_runs.version = move.version - 1 AND fsm_runs.owner = mover AND fsm_runs.epoch = move.epoch
    RETURNING move.*),
kept AS (
    INSERT INTO fsm_fields (run, hash, text)
    SELECT field.run, field.hash, field.text
      FROM unnest($30::bigint[], $31::text[], $32::text[]) AS field (run, hash, text) JOIN hit ON hit.run = field.run
        ON CONFLICT DO NOTHING),
forgotten AS (
    DELETE FROM fsm_calls
     USING unnest($33::bigint[], $34::text[], $35::bigint[]) AS gone (run, state, visit), hit
     WHERE fsm_calls.run = gone.run AND fsm_calls.state = gone.state AND fsm_calls.visit = gone.visit
       AND hit.run = gone.run)
INSERT INTO fsm_moves
       (run, version, at, began, event, trigger, source, dest, status,
        attempt, owner, epoch, changes, removed, asked, error)
SELECT run, version, at, began, event, trigger, source, state, status,
       attempt, mover, epoch, changes, removed, asked, failure
  FROM hit;

-- name: lock
-- All rows that a transaction of several statements writes, in the order of their ids.
SELECT id FROM fsm_runs WHERE id = ANY ($1::bigint[]) ORDER BY id FOR NO KEY UPDATE;

-- name: create
-- New runs, with their first row of history and their large fields. Those whose key was free come back. Ids are given
-- in the order of the arrays; keys are taken in their own order, so that two batches cannot wait for each other.
WITH run AS MATERIALIZED (
    SELECT nextval('fsm_runs_id_seq') AS id, run.*
      FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                  $9::bigint[], $10::float8[], $11::text[], $12::bigint[], $13::text[], $14::float8[], $15::float8[])
           AS run (workflow, key, definition, structure, status, state, active, data,
                   version, due, owner, epoch, input, created, updated)),
made AS (
    INSERT INTO fsm_runs
           (id, workflow, key, definition, structure, status, state, active, data,
            version, due, owner, epoch, input, created, updated)
    SELECT * FROM run ORDER BY workflow, key
        ON CONFLICT (workflow, key) DO NOTHING
    RETURNING *),
begun AS (
    INSERT INTO fsm_moves (run, version, at, event, source, dest, status, attempt, owner, epoch, changes)
    SELECT id, 0, created, '$start', '', state, status, 1, owner, epoch, nullif(data, '{}') FROM made),
kept AS (
    INSERT INTO fsm_fields (run, hash, text)
    SELECT made.id, field.hash, field.text
      FROM unnest($16::text[], $17::text[], $18::text[], $19::text[]) AS field (workflow, key, hash, text)
      JOIN made ON made.workflow = field.workflow AND made.key = field.key
        ON CONFLICT DO NOTHING)
SELECT id, workflow, key FROM made;

-- name: settle
-- What is no move: actions that were done are struck off, and the run is released. The version stays. The runs that
-- were hit come back.
UPDATE fsm_runs
   SET actions = done.actions, owner = done.owner, error = done.error,
       due = CASE WHEN posted = done.seen THEN done.due ELSE least(coalesce(fsm_runs.due, done.at), done.now) END
  FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::float8[], $6::float8[], $7::float8[],
              $8::bigint[], $9::bigint[], $10::text[], $11::bigint[])
       AS done (actions, owner, error, seen, due, at, now, run, version, mover, epoch)
 WHERE id = done.run AND fsm_runs.version = done.version
   AND fsm_runs.owner = done.mover AND fsm_runs.epoch = done.epoch
RETURNING id;

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

-- name: recall
SELECT state, visit, name, nth, result FROM fsm_calls WHERE run = $1 AND state = $2 AND visit = $3;

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

-- name: load
SELECT * FROM fsm_runs WHERE workflow = $1 AND key = $2;

-- name: load_many
SELECT fsm_runs.* FROM unnest($1::text[], $2::text[]) AS wanted (workflow, key) JOIN fsm_runs USING (workflow, key);

-- name: fields
SELECT run, hash, text FROM unnest($1::bigint[], $2::text[]) AS wanted (run, hash) JOIN fsm_fields USING (run, hash);

-- name: claim
-- The due runs of these workflows that no live owner holds, oldest first, become ours. A row that another claimed since
-- this statement began is passed over: its owner may be too new to be among the live ones that are seen here. The inner
-- look at `epoch` sees the row as it was then, also where the outer one has waited for another.
WITH live AS MATERIALIZED (
    SELECT token FROM fsm_owners WHERE lease > extract(epoch FROM clock_timestamp())),
free AS MATERIALIZED (
    SELECT id FROM fsm_runs
     WHERE due <= $2 AND workflow = ANY ($3::text[])
       AND (owner IS NULL OR owner NOT IN (SELECT token FROM live))
       AND epoch = (SELECT seen.epoch FROM fsm_runs AS seen WHERE seen.id = fsm_runs.id)
     ORDER BY due, id LIMIT $4 FOR NO KEY UPDATE SKIP LOCKED)
UPDATE fsm_runs SET owner = $1, epoch = epoch + 1, claim = $5
 WHERE id IN (SELECT id FROM free)
RETURNING *;

-- name: claimed
-- What a claim whose answer was lost has made ours.
SELECT * FROM fsm_runs WHERE due <= $2 AND owner = $1 AND claim = $3;

-- name: claim_one
-- One run becomes ours, whatever it waits for, unless a live owner holds it.
UPDATE fsm_runs SET owner = $1, epoch = epoch + 1
 WHERE workflow = $2 AND key = $3
   AND (owner IS NULL OR owner = $1
        OR owner NOT IN (SELECT token FROM fsm_owners WHERE lease > extract(epoch FROM clock_timestamp())))
   AND epoch = (SELECT seen.epoch FROM fsm_runs AS seen WHERE seen.id = fsm_runs.id)
RETURNING *;

-- name: oldest
-- The oldest run of a workflow that is unfinished, or failed and may go on, and that no live owner holds.
SELECT key FROM fsm_runs
 WHERE workflow = $1
   AND (status IN ('running', 'waiting') OR (status = 'failed' AND error IS NOT NULL))
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
INSERT INTO fsm_owners (token, machine, process, lease, started) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (token) DO UPDATE SET lease = excluded.lease
RETURNING extract(epoch FROM clock_timestamp())::float8;

-- name: renew
UPDATE fsm_owners SET lease = $2 WHERE token = $1
RETURNING extract(epoch FROM clock_timestamp())::float8;

-- name: owners
SELECT token, machine, process, lease, started FROM fsm_owners;

-- name: bury
DELETE FROM fsm_owners WHERE token = $1;

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
