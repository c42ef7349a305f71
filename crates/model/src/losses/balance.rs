//! The balance of the experts (after Shazeer et al. 2017 and Fedus et al. 2022):
//!
//! ```text
//! L_bal = mean over blocks of E · Σ_e f_e q_e
//! f_e = share of the tokens whose top k holds e, over k;   q_e = mean probability of e
//! ```
//!
//! It is 1 when all experts are used alike. f is a count without gradient and may come from more of the
//! batch than this process sees; q carries the gradient. A step that runs the backbone several times, on
//! global and on local views, passes the routing of every run: tokens of all runs count alike.

use burn::tensor::Tensor;

use crate::moe::Routing;

/// f of each block and expert over all runs, [blocks, experts], without gradient: it sums to 1 over a block's experts. The
/// mean of equal replicas' loads is the load of the whole batch. None of a backbone without experts.
///
/// passes: the routing of each run of the backbone, one entry a block.
pub fn expert_load(passes: &[&[Routing]]) -> Option<Tensor<2>> {
    let rows: Vec<Tensor<2>> = (0..blocks(passes))
        .map(|block| {
            let (sum, tokens) = total(passes, block, |routing| &routing.chosen);
            let k = sum.clone().sum_dim(1).div_scalar(tokens as f64);
            sum.div_scalar(tokens as f64) / k
        })
        .collect();
    (!rows.is_empty()).then(|| Tensor::cat(rows, 0).without_autodiff())
}

/// The loss of all blocks for a given load, that of [`expert_load`]: [1].
///
/// # Panics
/// When `load` has not one row a block.
pub fn balance_loss(passes: &[&[Routing]], load: &Tensor<2>) -> Tensor<1> {
    let count = blocks(passes);
    let rows = load.dims()[0];
    assert_eq!(rows, count, "load of {rows} blocks, routing of {count}");
    assert!(count > 0, "balance_loss needs a block with experts");
    let terms: Vec<Tensor<1>> = (0..count)
        .map(|block| {
            let (sum, tokens) = total(passes, block, |routing| &routing.probabilities);
            let experts = sum.dims()[1];
            (sum * load.clone().narrow(0, block, 1))
                .sum()
                .mul_scalar(experts as f64 / tokens as f64)
        })
        .collect();
    Tensor::cat(terms, 0).mean()
}

fn blocks(passes: &[&[Routing]]) -> usize {
    let count = passes.first().map_or(0, |pass| pass.len());
    assert!(
        passes.iter().all(|pass| pass.len() == count),
        "runs of different backbones"
    );
    count
}

/// Sum over the tokens of all runs, [1, experts], and their number.
fn total(
    passes: &[&[Routing]],
    block: usize,
    of: impl Fn(&Routing) -> &Tensor<3>,
) -> (Tensor<2>, usize) {
    let mut tokens = 0;
    let sums = passes
        .iter()
        .map(|pass| {
            let values = of(&pass[block]).clone();
            let [batch, count, experts] = values.dims();
            tokens += batch * count;
            values.reshape([batch * count, experts]).sum_dim(0)
        })
        .collect();
    (Tensor::cat(sums, 0).sum_dim(0), tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn values(load: &Tensor<2>) -> Vec<f32> {
        load.clone().try_into_vec_as().unwrap()
    }

    fn routing(probabilities: &[[f32; 4]], chosen: &[[f32; 4]]) -> Routing {
        let device = Device::flex();
        let tensor = |rows: &[[f32; 4]]| {
            Tensor::<1>::from_floats(rows.concat().as_slice(), &device).reshape([1, rows.len(), 4])
        };
        Routing {
            probabilities: tensor(probabilities),
            chosen: tensor(chosen),
            weights: tensor(chosen),
        }
    }

    #[test]
    fn one_when_balanced_and_more_when_not() {
        let even = routing(
            &[[0.25; 4]; 2],
            &[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]],
        );
        let passes: [&[Routing]; 1] = [&[even]];
        let load = expert_load(&passes).unwrap();
        assert_eq!(values(&load), [0.25; 4]);
        let loss: f32 = balance_loss(&passes, &load).into_scalar();
        assert!((loss - 1.0).abs() < 1e-6);

        let one = routing(&[[1.0, 0.0, 0.0, 0.0]; 2], &[[1.0, 0.0, 0.0, 0.0]; 2]);
        let passes: [&[Routing]; 1] = [&[one]];
        let loss: f32 = balance_loss(&passes, &expert_load(&passes).unwrap()).into_scalar();
        assert!((loss - 4.0).abs() < 1e-6);
    }

    #[test]
    fn runs_weigh_by_their_tokens() {
        let long = routing(&[[0.7, 0.1, 0.1, 0.1]; 3], &[[1.0, 0.0, 0.0, 0.0]; 3]);
        let short = routing(&[[0.1, 0.7, 0.1, 0.1]], &[[0.0, 1.0, 0.0, 0.0]]);
        let joined = routing(
            &[
                [0.7, 0.1, 0.1, 0.1],
                [0.7, 0.1, 0.1, 0.1],
                [0.7, 0.1, 0.1, 0.1],
                [0.1, 0.7, 0.1, 0.1],
            ],
            &[
                [1.0, 0.0, 0.0, 0.0],
                [1.0, 0.0, 0.0, 0.0],
                [1.0, 0.0, 0.0, 0.0],
                [0.0, 1.0, 0.0, 0.0],
            ],
        );
        let two: [&[Routing]; 2] = [&[long], &[short]];
        let one: [&[Routing]; 1] = [&[joined]];
        let load = expert_load(&two).unwrap();
        assert_eq!(values(&load), [0.75, 0.25, 0.0, 0.0]);
        let [a, b]: [f32; 2] =
            [balance_loss(&two, &load), balance_loss(&one, &load)].map(Tensor::into_scalar);
        assert!((a - b).abs() < 1e-6);
    }
}
