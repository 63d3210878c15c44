//! Accounts: passwd(5) and group(5) as text, read from the root that they belong to. Never through NSS, which would load
//! libraries of the host into a static program.

/// One line of passwd(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    /// Login name.
    pub(crate) name: String,
    /// User ID.
    pub(crate) uid: u32,
    /// Primary group ID.
    pub(crate) gid: u32,
    /// Home directory.
    pub(crate) home: String,
}

fn parse(line: &str) -> Option<Account> {
    let fields: Vec<&str> = line.split(':').collect();
    Some(Account {
        name: (*fields.first()?).to_owned(),
        uid: fields.get(2)?.parse().ok()?,
        gid: fields.get(3)?.parse().ok()?,
        home: (*fields.get(5)?).to_owned(),
    })
}

/// The account with this user ID.
pub(crate) fn by_uid(passwd: &str, uid: u32) -> Option<Account> {
    passwd.lines().filter_map(parse).find(|account| account.uid == uid)
}

/// The account with this login name.
pub(crate) fn by_name(passwd: &str, name: &str) -> Option<Account> {
    passwd.lines().filter_map(parse).find(|account| account.name == name)
}

/// The ID of the group with this name.
pub(crate) fn group_id(group: &str, name: &str) -> Option<u32> {
    group
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|f| f.first() == Some(&name))?
        .get(2)?
        .parse()
        .ok()
}

/// IDs of the groups that list `user` as a member.
pub(crate) fn member_of(group: &str, user: &str) -> Vec<u32> {
    group
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(|f| f.get(3).is_some_and(|members| members.split(',').any(|m| m == user)))
        .filter_map(|f| f.get(2)?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\nwww:x:33:34:www:/var/www:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\ntape:x:26:a,www\nbad\n";

    #[test]
    fn accounts_are_found_by_name_and_number() {
        assert_eq!(by_uid(PASSWD, 33).unwrap().name, "www");
        assert_eq!(by_name(PASSWD, "root").unwrap().home, "/root");
        assert_eq!(by_name(PASSWD, "broken"), None);
        assert_eq!(group_id(GROUP, "tape"), Some(26));
        assert_eq!(member_of(GROUP, "www"), [26]);
        assert_eq!(member_of(GROUP, "ww"), Vec::<u32>::new());
    }
}
