//! Window attention as two kernels, in CubeCL.
//!
//! A cube computes a head of a window, a unit a position of it. Keys and values are in shared
//! memory, the query and what becomes of it in registers. Scores are computed where they are needed
//! and never stored: three times in the backward pass. So window attention is about 4 % of the
//! operations of a Swin-B's step at 224×224 (products of 11 pairs of area × area × width a window and
//! head, beside 45 G of the rest), without its scores' way to memory and back.
//!
//! Sums are f32 whatever the format of the tensors.

use cubecl::prelude::*;

/// What the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WindowShape {
    /// Positions of a window, downwards.
    pub rows: usize,
    /// Positions of a window, to the right.
    pub columns: usize,
    /// Heads.
    pub heads: usize,
    /// Channels of a head.
    pub width: usize,
}

impl WindowShape {
    /// Positions of a window.
    pub fn area(&self) -> usize {
        self.rows * self.columns
    }

    /// Rows of the bias table.
    pub fn table_rows(&self) -> usize {
        (2 * self.rows - 1) * (2 * self.columns - 1)
    }

    /// The row of the table for a position and itself.
    fn center(&self) -> usize {
        self.table_rows() / 2
    }

    /// Units of a cube: one a position, in whole planes.
    pub fn units(&self) -> usize {
        self.area().next_multiple_of(32)
    }

    /// Bytes of shared memory of the backward pass, which needs more than the forward pass.
    pub fn shared_bytes(&self) -> usize {
        let area = self.area();
        4 * (2 * area * self.width + self.table_rows() + area * area + 5 * area)
    }
}

/// A score that is 0 after the softmax.
const NEVER: f32 = -1e30;

/// softmax(q kᵀ / √d + bias + mask) v within windows.
///
/// # Shapes
/// - qkv: [batch, tokens, 3·channels], without its bias; each part head by head
/// - bias: [3·channels]; table: [table rows, heads]
/// - places: [windows, 2, area]; first the token of each position counted from 1, 0 for padding,
///   then its region
/// - output: [batch, tokens, channels]
#[cube(launch)]
pub fn window_attention<F: Float, I: Int>(
    qkv: &Tensor<F>,
    bias: &Tensor<f32>,
    table: &Tensor<f32>,
    places: &Tensor<I>,
    output: &mut Tensor<F>,
    penalty: f32,
    scale: f32,
    #[comptime] shape: WindowShape,
    #[define(F, I)] _types: [ElemType; 2],
) {
    let area = comptime!(shape.area());
    let width = comptime!(shape.width);
    let center = comptime!(shape.center());
    let channels = comptime!(shape.heads * shape.width);
    let unit = UNIT_POS_X as usize;
    let window = CUBE_POS_X as usize;
    let head = CUBE_POS_Y as usize;
    let sample = CUBE_POS_Z as usize;

    let mut keys = Shared::<[f32]>::new_slice(comptime!(shape.area() * shape.width));
    let mut values = Shared::<[f32]>::new_slice(comptime!(shape.area() * shape.width));
    let mut biases = Shared::<[f32]>::new_slice(comptime!(shape.table_rows()));
    let mut tokens = Shared::<[u32]>::new_slice(comptime!(shape.area()));
    let mut regions = Shared::<[u32]>::new_slice(comptime!(shape.area()));
    load_table(table, &mut biases, head, shape);
    load_places::<I>(places, &mut tokens, &mut regions, window, shape);
    sync_cube();
    let column = head * width;
    load_part::<F>(
        qkv,
        bias,
        &tokens,
        &mut keys,
        sample,
        channels + column,
        shape,
    );
    load_part::<F>(
        qkv,
        bias,
        &tokens,
        &mut values,
        sample,
        2 * channels + column,
        shape,
    );
    sync_cube();

    if unit < area {
        let token = tokens[unit] as usize;
        if token > 0 {
            let row = sample * qkv.shape(1) + token - 1;
            let mut query = Array::<f32>::new(width);
            load_query::<F>(qkv, bias, &mut query, row, column, scale, shape);
            let mut mixed = Array::<f32>::new(width);
            #[unroll]
            for channel in 0..width {
                mixed[channel] = 0.0;
            }
            let region = regions[unit];
            let first = offset(unit, shape) + center;
            let mut largest = f32::new(NEVER);
            let mut sum = 0.0f32;
            for key in 0..area {
                let entry = biases[first - offset(key, shape)];
                let mut score = add_product(entry, &query, &keys, key, shape);
                if regions[key] != region {
                    score += penalty;
                }
                if score > largest {
                    let kept = (largest - score).exp();
                    sum *= kept;
                    #[unroll]
                    for channel in 0..width {
                        mixed[channel] *= kept;
                    }
                    largest = score;
                }
                let weight = (score - largest).exp();
                sum += weight;
                #[unroll]
                for channel in 0..width {
                    mixed[channel] += weight * values[key * width + channel];
                }
            }
            #[unroll]
            for channel in 0..width {
                output[row * channels + column + channel] = F::cast_from(mixed[channel] / sum);
            }
        }
    }
}

/// The gradients of [`window_attention`].
///
/// # Shapes
/// As there, and
/// - gradient: [batch, tokens, channels], of the output
/// - qkv_gradient: as qkv
/// - table_partial: [cubes, table rows, heads]; bias_partial: [cubes, 3·channels]; sums over the windows of
///   a cube of the gradients of table and bias
#[cube(launch)]
pub fn window_attention_backward<F: Float, I: Int>(
    gradient: &Tensor<F>,
    qkv: &Tensor<F>,
    bias: &Tensor<f32>,
    table: &Tensor<f32>,
    places: &Tensor<I>,
    qkv_gradient: &mut Tensor<F>,
    table_partial: &mut Tensor<f32>,
    bias_partial: &mut Tensor<f32>,
    penalty: f32,
    scale: f32,
    #[comptime] shape: WindowShape,
    #[define(F, I)] _types: [ElemType; 2],
) {
    let area = comptime!(shape.area());
    let width = comptime!(shape.width);
    let table_rows = comptime!(shape.table_rows());
    let center = comptime!(shape.center());
    let channels = comptime!(shape.heads * shape.width);
    let unit = UNIT_POS_X as usize;
    let head = CUBE_POS_Y as usize;
    let column = head * width;
    let windows = places.shape(0);

    // With P = softmax(S), S = scale·q kᵀ + bias: dP = dO vᵀ (`slope`), D = Σ P·dP (`mean`), dS = P·(dP − D)
    // (`change`), dq = scale·dS k, dk = dSᵀ·scale·q, dv = Pᵀ dO. `query` is scale·q, `given` dO; `found` is dq, then
    // dk. The shared rows hold k and v first, then dq, then scale·q and dO, then dk and dv.
    let mut one = Shared::<[f32]>::new_slice(comptime!(shape.area() * shape.width));
    let mut other = Shared::<[f32]>::new_slice(comptime!(shape.area() * shape.width));
    let mut biases = Shared::<[f32]>::new_slice(comptime!(shape.table_rows()));
    // Gradients of the scores, summed over the windows; each row is one unit's.
    let mut pairs = Shared::<[f32]>::new_slice(comptime!(shape.area() * shape.area()));
    let mut tokens = Shared::<[u32]>::new_slice(comptime!(shape.area()));
    let mut regions = Shared::<[u32]>::new_slice(comptime!(shape.area()));
    // Of each query: the largest score, the sum of the exponentials, and the mean of the weights'
    // gradients.
    let mut largest_of = Shared::<[f32]>::new_slice(comptime!(shape.area()));
    let mut sum_of = Shared::<[f32]>::new_slice(comptime!(shape.area()));
    let mut mean_of = Shared::<[f32]>::new_slice(comptime!(shape.area()));
    load_table(table, &mut biases, head, shape);
    let mut place = unit;
    while place < area * area {
        pairs[place] = 0.0;
        place += CUBE_DIM_X as usize;
    }

    let mut bias_sums = Array::<f32>::new(3usize);
    #[unroll]
    for part in 0..3usize {
        bias_sums[part] = 0.0;
    }
    let mut query = Array::<f32>::new(width);
    let mut given = Array::<f32>::new(width);
    let mut found = Array::<f32>::new(width);
    let mut own_key = Array::<f32>::new(width);
    let mut own_value = Array::<f32>::new(width);

    let total = gradient.shape(0) * windows;
    let mut index = CUBE_POS_X as usize;
    while index < total {
        let window = index % windows;
        let sample = index / windows;
        sync_cube();
        load_places::<I>(places, &mut tokens, &mut regions, window, shape);
        sync_cube();
        load_part::<F>(
            qkv,
            bias,
            &tokens,
            &mut one,
            sample,
            channels + column,
            shape,
        );
        load_part::<F>(
            qkv,
            bias,
            &tokens,
            &mut other,
            sample,
            2 * channels + column,
            shape,
        );
        sync_cube();

        let mut token = 0usize;
        let mut region = 0u32;
        if unit < area {
            token = tokens[unit] as usize;
            region = regions[unit];
        }
        // Counted from 1, as `token`.
        let next_row = sample * qkv.shape(1) + token;
        #[unroll]
        for channel in 0..width {
            query[channel] = 0.0;
            given[channel] = 0.0;
            found[channel] = 0.0;
        }
        if token > 0 {
            load_query::<F>(qkv, bias, &mut query, next_row - 1, column, scale, shape);
            #[unroll]
            for channel in 0..width {
                given[channel] =
                    f32::cast_from(gradient[(next_row - 1) * channels + column + channel]);
            }
            let first = offset(unit, shape) + center;
            let mut largest = f32::new(NEVER);
            let mut sum = 0.0f32;
            let mut mean = 0.0f32;
            for key in 0..area {
                let entry = biases[first - offset(key, shape)];
                let mut score = add_product(entry, &query, &one, key, shape);
                let slope = add_product(0.0f32, &given, &other, key, shape);
                if regions[key] != region {
                    score += penalty;
                }
                if score > largest {
                    let kept = (largest - score).exp();
                    sum *= kept;
                    mean *= kept;
                    largest = score;
                }
                let weight = (score - largest).exp();
                sum += weight;
                mean += weight * slope;
            }
            mean /= sum;
            largest_of[unit] = largest;
            sum_of[unit] = sum;
            mean_of[unit] = mean;
            for key in 0..area {
                let entry = biases[first - offset(key, shape)];
                let mut score = add_product(entry, &query, &one, key, shape);
                let slope = add_product(0.0f32, &given, &other, key, shape);
                if regions[key] != region {
                    score += penalty;
                }
                let change = (score - largest).exp() / sum * (slope - mean);
                pairs[unit * area + key] += change;
                #[unroll]
                for channel in 0..width {
                    found[channel] += change * one[key * width + channel];
                }
            }
            #[unroll]
            for channel in 0..width {
                found[channel] *= scale;
                qkv_gradient[(next_row - 1) * 3 * channels + column + channel] =
                    F::cast_from(found[channel]);
            }
        }

        // Each position's own key and value, before their places are taken.
        if unit < area {
            #[unroll]
            for channel in 0..width {
                own_key[channel] = one[unit * width + channel];
                own_value[channel] = other[unit * width + channel];
            }
        }
        sync_cube();
        store_rows(&mut one, &found, shape);
        sync_cube();
        bias_sums[0] += sum_column(&one, shape);
        sync_cube();
        store_rows(&mut one, &query, shape);
        store_rows(&mut other, &given, shape);
        sync_cube();

        let mut value_gradient = Array::<f32>::new(width);
        #[unroll]
        for channel in 0..width {
            found[channel] = 0.0;
            value_gradient[channel] = 0.0;
        }
        if unit < area {
            let last = center - offset(unit, shape);
            for from in 0..area {
                if tokens[from] > 0 {
                    let entry = biases[last + offset(from, shape)];
                    let mut score = add_product(entry, &own_key, &one, from, shape);
                    let slope = add_product(0.0f32, &own_value, &other, from, shape);
                    if regions[from] != region {
                        score += penalty;
                    }
                    let weight = (score - largest_of[from]).exp() / sum_of[from];
                    let change = weight * (slope - mean_of[from]);
                    #[unroll]
                    for channel in 0..width {
                        value_gradient[channel] += weight * other[from * width + channel];
                        found[channel] += change * one[from * width + channel];
                    }
                }
            }
            if token > 0 {
                #[unroll]
                for channel in 0..width {
                    let place = (next_row - 1) * 3 * channels + channels + column + channel;
                    qkv_gradient[place] = F::cast_from(found[channel]);
                    qkv_gradient[place + channels] = F::cast_from(value_gradient[channel]);
                }
            }
        }
        sync_cube();
        store_rows(&mut one, &found, shape);
        store_rows(&mut other, &value_gradient, shape);
        sync_cube();
        bias_sums[1] += sum_column(&one, shape);
        bias_sums[2] += sum_column(&other, shape);
        index += CUBE_COUNT_X as usize;
    }

    sync_cube();
    if unit < width {
        let start = CUBE_POS_X as usize * 3 * channels + column + unit;
        #[unroll]
        for part in 0..3usize {
            bias_partial[start + part * channels] = bias_sums[part];
        }
    }
    let mut entry = unit;
    while entry < table_rows {
        let row = CUBE_POS_X as usize * table_rows + entry;
        table_partial[row * comptime!(shape.heads) + head] = sum_of_entry(&pairs, entry, shape);
        entry += CUBE_DIM_X as usize;
    }
}

/// Where a position is in the bias table: the row for a query and a key is
/// `offset(query) + center - offset(key)`.
#[cube]
fn offset(position: usize, #[comptime] shape: WindowShape) -> usize {
    let columns = comptime!(shape.columns);
    let table_columns = comptime!(2 * shape.columns - 1);
    position / columns * table_columns + position % columns
}

/// The head's column of the bias table.
#[cube]
fn load_table(
    table: &Tensor<f32>,
    biases: &mut Shared<[f32]>,
    head: usize,
    #[comptime] shape: WindowShape,
) {
    let rows = comptime!(shape.table_rows());
    let heads = comptime!(shape.heads);
    let mut row = UNIT_POS_X as usize;
    while row < rows {
        biases[row] = table[row * heads + head];
        row += CUBE_DIM_X as usize;
    }
}

/// Tokens and regions of the positions of a window.
#[cube]
fn load_places<I: Int>(
    places: &Tensor<I>,
    tokens: &mut Shared<[u32]>,
    regions: &mut Shared<[u32]>,
    window: usize,
    #[comptime] shape: WindowShape,
) {
    let area = comptime!(shape.area());
    let unit = UNIT_POS_X as usize;
    if unit < area {
        tokens[unit] = u32::cast_from(places[window * 2 * area + unit]);
        regions[unit] = u32::cast_from(places[(window * 2 + 1) * area + unit]);
    }
}

/// The `width` channels from `column` of each position, with their bias; of padding the bias alone.
#[cube]
fn load_part<F: Float>(
    qkv: &Tensor<F>,
    bias: &Tensor<f32>,
    tokens: &Shared<[u32]>,
    part: &mut Shared<[f32]>,
    sample: usize,
    column: usize,
    #[comptime] shape: WindowShape,
) {
    let width = comptime!(shape.width);
    let values = comptime!(shape.area() * shape.width);
    let stride = comptime!(3 * shape.heads * shape.width);
    let mut place = UNIT_POS_X as usize;
    while place < values {
        let channel = column + place % width;
        let token = tokens[place / width] as usize;
        let mut value = bias[channel];
        if token > 0 {
            let row = sample * qkv.shape(1) + token - 1;
            value += f32::cast_from(qkv[row * stride + channel]);
        }
        part[place] = value;
        place += CUBE_DIM_X as usize;
    }
}

/// scale·q of a row of tokens: the `width` channels from `column`, with their bias.
#[cube]
fn load_query<F: Float>(
    qkv: &Tensor<F>,
    bias: &Tensor<f32>,
    query: &mut Array<f32>,
    row: usize,
    column: usize,
    scale: f32,
    #[comptime] shape: WindowShape,
) {
    let width = comptime!(shape.width);
    let stride = comptime!(3 * shape.heads * shape.width);
    #[unroll]
    for channel in 0..width {
        let value = f32::cast_from(qkv[row * stride + column + channel]);
        query[channel] = (value + bias[column + channel]) * scale;
    }
}

/// `sum` and the product of a unit's channels with those of a position's row.
#[cube]
fn add_product(
    sum: f32,
    own: &Array<f32>,
    rows: &Shared<[f32]>,
    position: usize,
    #[comptime] shape: WindowShape,
) -> f32 {
    let width = comptime!(shape.width);
    let mut sum = sum;
    #[unroll]
    for channel in 0..width {
        sum += own[channel] * rows[position * width + channel];
    }
    sum
}

/// Puts each unit's channels into its position's row.
#[cube]
fn store_rows(target: &mut Shared<[f32]>, row: &Array<f32>, #[comptime] shape: WindowShape) {
    let area = comptime!(shape.area());
    let width = comptime!(shape.width);
    let unit = UNIT_POS_X as usize;
    if unit < area {
        #[unroll]
        for channel in 0..width {
            target[unit * width + channel] = row[channel];
        }
    }
}

/// The sum over the positions of the unit's channel; 0 for units without one.
#[cube]
fn sum_column(rows: &Shared<[f32]>, #[comptime] shape: WindowShape) -> f32 {
    let area = comptime!(shape.area());
    let width = comptime!(shape.width);
    let unit = UNIT_POS_X as usize;
    let mut sum = 0.0f32;
    if unit < width {
        for position in 0..area {
            sum += rows[position * width + unit];
        }
    }
    sum
}

/// The sum over the pairs of positions that share a row of the bias table.
#[cube]
fn sum_of_entry(pairs: &Shared<[f32]>, entry: usize, #[comptime] shape: WindowShape) -> f32 {
    let rows = comptime!(shape.rows);
    let columns = comptime!(shape.columns);
    let area = comptime!(shape.area());
    let table_columns = comptime!(2 * shape.columns - 1);
    // How far the query is below and to the right of the key, plus rows - 1 and columns - 1.
    let down = entry / table_columns;
    let right = entry % table_columns;
    let mut sum = 0.0f32;
    for key_row in 0..rows {
        let row = key_row + down;
        if row >= comptime!(shape.rows - 1) && row < comptime!(2 * shape.rows - 1) {
            for key_column in 0..columns {
                let column = key_column + right;
                if column >= comptime!(shape.columns - 1)
                    && column < comptime!(2 * shape.columns - 1)
                {
                    let query = (row - comptime!(shape.rows - 1)) * columns + column
                        - comptime!(shape.columns - 1);
                    sum += pairs[query * area + key_row * columns + key_column];
                }
            }
        }
    }
    sum
}
